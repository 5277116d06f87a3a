/* measure NAME FILE COMMAND [ARGUMENT]...: runs a command, whose output goes to FILE, and marks on standard output when
 * it begins and ends.
 *
 *   suite: begin NAME
 *   suite: end NAME STATUS USER_US SYSTEM_US WALL_US
 *
 * The times are of the command and of everything it waited for, by the clock of the kernel that runs it. Who emulates
 * that kernel looks at its own clock when it sees the marks. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long us(struct timeval t)
{
	return t.tv_sec * 1000000ll + t.tv_usec;
}

/* One write, so that the mark appears as a whole. */
static void say(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		exit(1);
}

int main(int argc, char **argv)
{
	struct timespec start, end;
	struct rusage used;
	char line[256];
	int status;

	if (argc < 4) {
		fprintf(stderr, "usage: measure NAME FILE COMMAND [ARGUMENT]...\n");
		return 2;
	}
	snprintf(line, sizeof line, "suite: begin %s\n", argv[1]);
	say(line);
	clock_gettime(CLOCK_MONOTONIC, &start);
	pid_t child = fork();
	if (child == 0) {
		int out = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY, 0644);
		if (out >= 0 && dup2(out, STDOUT_FILENO) >= 0)
			execvp(argv[3], argv + 3);
		perror(argv[2]);
		_exit(127);
	}
	if (child < 0 || wait4(child, &status, 0, &used) < 0) {
		perror("measure");
		return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	long long wall = (end.tv_sec - start.tv_sec) * 1000000ll + (end.tv_nsec - start.tv_nsec) / 1000;
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	snprintf(line, sizeof line, "suite: end %s %d %lld %lld %lld\n", argv[1], status, us(used.ru_utime),
		 us(used.ru_stime), wall);
	say(line);
	return status;
}
