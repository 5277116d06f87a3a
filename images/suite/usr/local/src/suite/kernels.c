/* kernels NAME [SIZE]: small programs that do one kind of work each. Each prints what it computed, so that a wrong CPU
 * is seen and the compiler cannot leave the work out. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t seed = 88172645463325252ull;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void *need(void *memory)
{
	if (!memory) {
		perror("memory");
		exit(1);
	}
	return memory;
}

static void check(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* Integer. */

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

/* Calls through a pointer, branches that nobody can predict. */
static uint64_t do_qsort(long size)
{
	long count = 1 << 18;
	uint32_t *values = need(malloc(count * sizeof *values));
	uint64_t sum = 0;
	for (long round = 0; round < size; round++) {
		for (long i = 0; i < count; i++)
			values[i] = next_random();
		qsort(values, count, sizeof *values, compare);
		sum += values[count / 2];
	}
	return sum;
}

static int place(int n, uint32_t columns, uint32_t left, uint32_t right)
{
	uint32_t free = ((1u << n) - 1) & ~(columns | left | right);
	int found = columns == (1u << n) - 1;
	while (free) {
		uint32_t bit = free & -free;
		free ^= bit;
		found += place(n, columns | bit, (left | bit) << 1, (right | bit) >> 1);
	}
	return found;
}

/* Recursion: calls and returns. */
static uint64_t do_queens(long size)
{
	return place(size, 0, 0, 0);
}

/* A virtual machine with a switch: indirect jumps. */
static uint64_t do_bytecode(long size)
{
	static const uint8_t program[] = {0, 1, 2, 3, 1, 4, 2, 0, 5, 3, 1, 6, 4, 2, 5, 7};
	uint64_t a = 1, b = 2, stack[16] = {0};
	unsigned top = 0, at = 0;
	for (long left = size;;) {
		switch (program[at++]) {
		case 0: a += b; break;
		case 1: stack[top++ & 15] = a; break;
		case 2: b = stack[--top & 15] ^ a; break;
		case 3: a = a * 6364136223846793005ull + 1; break;
		case 4: b = (b << 7) | (b >> 57); break;
		case 5: if (a & 64) a -= b; break;
		case 6: a ^= b >> 3; break;
		case 7: at = 0; if (--left == 0) return a ^ b; break;
		}
	}
}

/* Memory. */

/* Follows a random cycle through so many cache lines. */
static uint64_t chase(long line_count, long step_count)
{
	uint32_t (*lines)[16] = need(aligned_alloc(64, line_count * 64));
	uint32_t *order = need(malloc(line_count * sizeof *order));
	for (long i = 0; i < line_count; i++)
		order[i] = i;
	for (long i = line_count - 1; i > 0; i--) {
		long other = next_random() % (i + 1);
		uint32_t kept = order[i];
		order[i] = order[other];
		order[other] = kept;
	}
	for (long i = 0; i < line_count; i++)
		lines[order[i]][0] = order[(i + 1) % line_count];
	uint32_t at = 0;
	for (long i = 0; i < step_count; i++)
		at = lines[at][0];
	return at;
}

static uint64_t do_chase_cache(long size)
{
	return chase(4096, size);
}

static uint64_t do_chase_ram(long size)
{
	return chase(1 << 20, size);
}

/* Open addressing in 32 MiB. */
static uint64_t do_hash(long size)
{
	uint64_t mask = (1 << 21) - 1, found = 0;
	uint64_t (*table)[2] = need(calloc(mask + 1, sizeof *table));
	for (long i = 0; i < size; i++) {
		uint64_t key = (next_random() & 0xfffff) + 1, at = key * 11400714819323198485ull >> 43;
		while (table[at & mask][0] && table[at & mask][0] != key)
			at++;
		found += table[at & mask][0] == key;
		table[at & mask][0] = key;
		table[at & mask][1] += i;
	}
	return found;
}

struct node {
	struct node *child[2];
	uint64_t key;
};

/* A binary tree with a node from malloc each, made, searched and freed. */
static uint64_t do_tree(long size)
{
	uint64_t sum = 0;
	for (long round = 0; round < size; round++) {
		struct node *root = NULL, *nodes[20000];
		for (int i = 0; i < 20000; i++) {
			struct node *node = nodes[i] = need(calloc(1, sizeof *node)), **at = &root;
			node->key = next_random();
			while (*at)
				at = &(*at)->child[node->key > (*at)->key];
			*at = node;
		}
		for (int i = 0; i < 20000; i++) {
			const struct node *at = root;
			while (at->key != nodes[i]->key)
				at = at->child[nodes[i]->key > at->key], sum++;
		}
		for (int i = 0; i < 20000; i++)
			free(nodes[i]);
	}
	return sum;
}

/* The C library's own copy, blocks from 16 bytes to 4 MiB. */
static uint64_t do_copy(long size)
{
	size_t len = 4 << 20;
	uint8_t *from = need(malloc(len)), *to = need(malloc(len));
	uint64_t sum = 0;
	for (size_t i = 0; i < len; i++)
		from[i] = i * 31;
	for (long round = 0; round < size; round++) {
		memcpy(to, from, len);
		for (size_t block = 16; block <= 65536; block *= 4)
			for (size_t at = 0; at + block <= len / 4; at += block)
				memcpy(to + at, from + (at * 7 + round) % (len - block), block);
		sum += to[(round * 4099) % len];
	}
	return sum;
}

/* Floating point and SIMD. */

/* Five bodies that attract each other. */
static uint64_t do_nbody(long size)
{
	double p[5][3] = {{0, 0, 0}, {4.8, -1.2, -0.1}, {8.3, 4.1, -0.4}, {12.9, -15.1, -0.2}, {15.4, -25.9, 0.2}};
	double v[5][3] = {{0, 0, 0}, {0.6, 2.8, 0}, {-1.0, 1.8, 0}, {1.1, 0.9, 0}, {1.0, 0.6, 0}};
	double mass[5] = {39.5, 0.04, 0.01, 0.002, 0.002};
	for (long step = 0; step < size; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double d[3], square = 0;
				for (int k = 0; k < 3; k++)
					d[k] = p[i][k] - p[j][k], square += d[k] * d[k];
				double force = 0.001 / (square * sqrt(square));
				for (int k = 0; k < 3; k++)
					v[i][k] -= d[k] * mass[j] * force, v[j][k] += d[k] * mass[i] * force;
			}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++)
				p[i][k] += 0.001 * v[i][k];
	}
	return (uint64_t)(p[1][0] * 1e9);
}

static uint64_t do_mandelbrot(long size)
{
	uint64_t sum = 0;
	for (long y = 0; y < size; y++)
		for (long x = 0; x < size; x++) {
			double cr = 2.0 * x / size - 1.5, ci = 2.0 * y / size - 1.0, r = 0, i = 0;
			int n = 0;
			for (; n < 100 && r * r + i * i < 4; n++) {
				double next = r * r - i * i + cr;
				i = 2 * r * i + ci;
				r = next;
			}
			sum += n;
		}
	return sum;
}

/* Packed doubles. */
static uint64_t do_matmul(long size)
{
	enum { N = 256 };
	static double a[N][N], b[N][N], c[N][N];
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			a[i][j] = i + j, b[i][j] = i - j;
	for (long round = 0; round < size; round++)
		for (int i = 0; i < N; i++)
			for (int k = 0; k < N; k++)
				for (int j = 0; j < N; j++)
					c[i][j] += a[i][k] * b[k][j];
	return (uint64_t)(c[3][5] + c[N - 1][7]);
}

/* Packed singles: a stencil. */
static uint64_t do_stencil(long size)
{
	enum { N = 512 };
	static float grid[2][N][N];
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			grid[0][i][j] = (i * 7 + j * 3) % 64;
	for (long round = 0; round < size; round++) {
		float (*from)[N] = grid[round & 1], (*to)[N] = grid[~round & 1];
		for (int i = 1; i < N - 1; i++)
			for (int j = 1; j < N - 1; j++)
				to[i][j] = 0.5f * from[i][j] +
					   0.125f * (from[i - 1][j] + from[i + 1][j] + from[i][j - 1] + from[i][j + 1]);
	}
	return (uint64_t)(grid[size & 1][N / 2][N / 2] * 1e6f);
}

/* Packed integers: one picture over another, and their distance. */
static uint64_t do_pixels(long size)
{
	enum { N = 1 << 16 };
	static uint8_t above[N], below[N], alpha[N], out[N];
	uint64_t sum = 0;
	for (int i = 0; i < N; i++)
		above[i] = i * 7, below[i] = i * 13, alpha[i] = i * 3;
	for (long round = 0; round < size; round++) {
		for (int i = 0; i < N; i++)
			out[i] = (above[i] * alpha[i] + below[i] * (255 - alpha[i])) >> 8;
		uint32_t distance = 0;
		for (int i = 0; i < N; i++)
			distance += abs(out[i] - above[i]);
		sum += distance;
		below[round % N] ^= distance;
	}
	return sum;
}

/* The C library's functions. */
static uint64_t do_libm(long size)
{
	double sum = 0;
	for (long i = 1; i <= size; i++) {
		double x = i * 1e-4;
		sum += sin(x) * exp(-x * 1e-3) + log(x) / (1 + atan(x)) + pow(x, 0.3);
	}
	/* Few digits: the library takes fused multiplications where the CPU has them. */
	return (uint64_t)(sum * 1e-3);
}

/* long double: the x87. */
static uint64_t do_x87(long size)
{
	long double sum = 0, x = 1;
	for (long i = 1; i <= size; i++) {
		x = x * 1.0000001L + 1e-9L;
		sum += (i & 1 ? 4.0L : -4.0L) / (2 * i - 1) * x - (x - 1) / i;
	}
	return (uint64_t)(sum * 1e12L);
}

/* System. */

static uint64_t do_syscall(long size)
{
	uint64_t sum = 0;
	int fd = open("/dev/zero", O_RDWR);
	char byte[64];
	check(fd, "/dev/zero");
	for (long i = 0; i < size; i++) {
		sum += syscall(SYS_getppid) > 0;
		check(pread(fd, byte, sizeof byte, 0), "pread");
		check(pwrite(fd, byte, sizeof byte, 0), "pwrite");
		struct stat stat;
		check(fstat(fd, &stat), "fstat");
	}
	return sum;
}

static uint64_t do_fork(long size)
{
	uint64_t sum = 0;
	size_t len = 1 << 20;
	char *memory = need(malloc(len));
	memset(memory, 1, len);
	for (long i = 0; i < size; i++) {
		int status;
		pid_t child = fork();
		check(child, "fork");
		if (child == 0) {
			for (size_t at = 0; at < len / 4; at += 4096)
				memory[at] = 2;
			_exit(3);
		}
		check(waitpid(child, &status, 0), "waitpid");
		sum += WEXITSTATUS(status);
	}
	return sum;
}

static uint64_t do_exec(long size)
{
	char *const arguments[] = {"true", NULL}, *const none[] = {NULL};
	uint64_t sum = 0;
	for (long i = 0; i < size; i++) {
		int status;
		pid_t child;
		check(-posix_spawn(&child, "/bin/true", NULL, NULL, arguments, none), "posix_spawn");
		check(waitpid(child, &status, 0), "waitpid");
		sum += status == 0;
	}
	return sum;
}

/* Two processes wait for each other. */
static uint64_t do_pipe(long size)
{
	int there[2], back[2];
	char byte = 1;
	check(pipe(there), "pipe");
	check(pipe(back), "pipe");
	pid_t child = fork();
	check(child, "fork");
	if (child == 0) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1)
			check(write(back[1], &byte, 1), "write");
		_exit(0);
	}
	for (long i = 0; i < size; i++) {
		check(write(there[1], &byte, 1), "write");
		check(read(back[0], &byte, 1), "read");
	}
	close(there[1]);
	check(waitpid(child, NULL, 0), "waitpid");
	return size;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long turn, turns;

static void *take_turns(void *mine)
{
	pthread_mutex_lock(&mutex);
	while (turn < turns) {
		while ((turn & 1) != (long)mine && turn < turns)
			pthread_cond_wait(&changed, &mutex);
		turn++;
		pthread_cond_signal(&changed);
	}
	pthread_mutex_unlock(&mutex);
	return NULL;
}

/* Two threads take turns by a condition. */
static uint64_t do_threads(long size)
{
	pthread_t other;
	turns = size;
	if (pthread_create(&other, NULL, take_turns, (void *)1) != 0)
		check(-1, "pthread_create");
	take_turns((void *)0);
	pthread_join(other, NULL);
	return size;
}

static uint64_t do_faults(long size)
{
	size_t len = 16 << 20;
	uint64_t sum = 0;
	for (long round = 0; round < size; round++) {
		char *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			check(-1, "mmap");
		check(madvise(memory, len, MADV_NOHUGEPAGE), "madvise");
		for (size_t at = 0; at < len; at += 4096)
			memory[at] = at >> 12, sum += memory[at];
		check(munmap(memory, len), "munmap");
	}
	return sum;
}

/* Small files in the current folder: made, read, renamed, removed. */
static uint64_t do_files(long size)
{
	uint64_t sum = 0;
	char name[2][32], text[3000];
	memset(text, 'x', sizeof text);
	for (long round = 0; round < size; round++) {
		for (int i = 0; i < 200; i++) {
			snprintf(name[0], sizeof name[0], "file-%d", i);
			int fd = open(name[0], O_CREAT | O_TRUNC | O_WRONLY, 0644);
			check(fd, "open");
			check(write(fd, text, sizeof text), "write");
			close(fd);
		}
		for (int i = 0; i < 200; i++) {
			snprintf(name[0], sizeof name[0], "file-%d", i);
			snprintf(name[1], sizeof name[1], "other-%d", i);
			int fd = open(name[0], O_RDONLY);
			check(fd, "open");
			ssize_t len = read(fd, text, sizeof text);
			check(len, "read");
			sum += len;
			close(fd);
			check(rename(name[0], name[1]), "rename");
		}
		for (int i = 0; i < 200; i++) {
			snprintf(name[1], sizeof name[1], "other-%d", i);
			check(unlink(name[1]), "unlink");
		}
	}
	return sum;
}

/* A file in the current folder: written, brought to the disk, and read from there again. */
static uint64_t do_disk(long size)
{
	static char block[1 << 20] __attribute__((aligned(4096)));
	uint64_t sum = 0;
	int fd = open("disk", O_CREAT | O_TRUNC | O_RDWR, 0644);
	check(fd, "open");
	for (long i = 0; i < size; i++) {
		memset(block, i, sizeof block);
		check(write(fd, block, sizeof block), "write");
		if (i % 8 == 7)
			check(fdatasync(fd), "fdatasync");
	}
	check(fsync(fd), "fsync");
	check(-posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "fadvise");
	for (long i = 0; i < size; i++) {
		check(pread(fd, block, sizeof block, i << 20), "pread");
		sum += (unsigned char)block[i];
	}
	check(unlink("disk"), "unlink");
	return sum;
}

static const struct {
	const char *name;
	uint64_t (*run)(long);
	long size;
} kernels[] = {
	{"qsort", do_qsort, 14},
	{"queens", do_queens, 14},
	{"bytecode", do_bytecode, 40000000},
	{"chase-cache", do_chase_cache, 100000000},
	{"chase-ram", do_chase_ram, 5000000},
	{"hash", do_hash, 20000000},
	{"tree", do_tree, 120},
	{"copy", do_copy, 800},
	{"nbody", do_nbody, 5000000},
	{"mandelbrot", do_mandelbrot, 1800},
	{"matmul", do_matmul, 180},
	{"stencil", do_stencil, 5000},
	{"pixels", do_pixels, 36000},
	{"libm", do_libm, 12000000},
	{"x87", do_x87, 80000000},
	{"syscall", do_syscall, 500000},
	{"fork", do_fork, 1200},
	{"exec", do_exec, 500},
	{"pipe", do_pipe, 80000},
	{"threads", do_threads, 100000},
	{"faults", do_faults, 60},
	{"files", do_files, 40},
	{"disk", do_disk, 160},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
		if (argc > 1 && strcmp(argv[1], kernels[i].name) == 0) {
			long size = argc > 2 ? atol(argv[2]) : kernels[i].size;
			printf("%016llx\n", (unsigned long long)kernels[i].run(size));
			return 0;
		}
	fprintf(stderr, "usage: kernels NAME [SIZE]\n");
	return 2;
}
