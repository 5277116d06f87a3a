//! What `suite` in the image prints.

/// A mark of a workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mark {
    /// The first line of the disk's first program.
    Init,
    /// The servers of `suite-serve` answer.
    Serving,
    Begin(String),
    /// It ended, and took this much CPU time by the kernel's own account.
    End {
        workload: String,
        status: u32,
        cpu_s: f64,
    },
    /// A checksum of what it computed.
    Answer {
        workload: String,
        checksum: String,
    },
    /// The command of the kernel's command line has ended.
    Done(u32),
}

impl Mark {
    /// The mark in a line of a console, on which the kernel may have written, too.
    pub(crate) fn parse(line: &str) -> Option<Mark> {
        if let Some((_, status)) = line.split_once("lockstep.run: exit status ") {
            return Some(Mark::Done(status.trim().parse().ok()?));
        }
        let (_, mark) = line.split_once("suite: ")?;
        let words: Vec<&str> = mark.split_whitespace().collect();
        match *words.as_slice() {
            ["init"] => Some(Mark::Init),
            ["serving"] => Some(Mark::Serving),
            ["begin", workload] => Some(Mark::Begin(workload.to_owned())),
            ["end", workload, status, user_us, system_us, _wall_us] => {
                let (user_us, system_us): (u64, u64) =
                    (user_us.parse().ok()?, system_us.parse().ok()?);
                let cpu_s = user_us as f64 / 1e6 + system_us as f64 / 1e6;
                let (workload, status) = (workload.to_owned(), status.parse().ok()?);
                Some(Mark::End { workload, status, cpu_s })
            }
            ["answer", workload, crc, len] => {
                let workload = workload.to_owned();
                Some(Mark::Answer { workload, checksum: format!("{crc} {len}") })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_behind_other_words_of_a_line() {
        assert_eq!(Mark::parse("[ 1.5] suite: begin gzip\r"), Some(Mark::Begin("gzip".into())));
        let end = Mark::parse("suite: end gzip 0 1500000 250000 1900000\r\n");
        let cpu_s = 1.75;
        assert_eq!(end, Some(Mark::End { workload: "gzip".into(), status: 0, cpu_s }));
        assert_eq!(Mark::parse("lockstep.run: exit status 3\r\n"), Some(Mark::Done(3)));
        assert_eq!(Mark::parse("suite: init"), Some(Mark::Init));
    }

    #[test]
    fn a_broken_mark_is_no_mark() {
        for line in
            ["", "suite: ", "suite: end gzip 0 1", "suite: end gzip x 1 2 3", "suite: begin a b"]
        {
            assert_eq!(Mark::parse(line), None, "{line}");
        }
    }
}
