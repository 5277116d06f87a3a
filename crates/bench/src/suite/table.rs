//! Medians over the rounds, means over the workloads, and the tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::session::Spent;
use super::subjects::Subject;
use super::workloads::{BOUND, Class, Workload};
use crate::stats::{geometric_mean, median};

/// What each subject spent on each workload, one entry a round.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<(&'static str, Subject), Vec<Spent>>);

impl Figures {
    pub(crate) fn add(&mut self, workload: &'static str, subject: Subject, spent: Spent) {
        self.0.entry((workload, subject)).or_default().push(spent);
    }

    /// Medians of CPU and of wall time.
    pub(crate) fn median(&self, workload: &'static str, subject: Subject) -> Option<Spent> {
        let rounds = self.0.get(&(workload, subject))?;
        let of = |what: fn(&Spent) -> f64| median(&rounds.iter().map(what).collect::<Vec<f64>>());
        Some(Spent { cpu_s: of(|spent| spent.cpu_s), wall_s: of(|spent| spent.wall_s) })
    }

    fn cpu_s(&self, workload: &'static str, subject: Subject) -> Option<f64> {
        self.median(workload, subject).map(|spent| spent.cpu_s)
    }

    /// CPU time over native CPU time.
    pub(crate) fn ratio(&self, workload: &'static str, subject: Subject) -> Option<f64> {
        Some(self.cpu_s(workload, subject)? / self.cpu_s(workload, Subject::Native)?)
    }

    /// Geometric mean of the ratios of a class, or of all workloads; none where one is missing.
    pub(crate) fn mean(
        &self,
        workloads: &[Workload],
        class: Option<Class>,
        subject: Subject,
    ) -> Option<f64> {
        let of_class = |workload: &&Workload| class.is_none_or(|class| workload.class == class);
        let ratios = workloads.iter().filter(of_class).map(|w| self.ratio(w.name, subject));
        let ratios = ratios.collect::<Option<Vec<f64>>>()?;
        (!ratios.is_empty()).then(|| geometric_mean(&ratios))
    }

    /// Workloads on which `slower` took more CPU time than `faster`, and how many times as much.
    fn slower(
        &self,
        workloads: &[Workload],
        slower: Subject,
        faster: Subject,
    ) -> Vec<(&'static str, f64)> {
        let quotient = |w: &Workload| {
            Some((w.name, self.cpu_s(w.name, slower)? / self.cpu_s(w.name, faster)?))
        };
        workloads.iter().filter_map(quotient).filter(|(_, times)| *times > 1.0).collect()
    }
}

/// A number in a table, or its absence.
pub(crate) fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// A table's head: what the rows are, further columns, and the subjects.
pub(crate) fn head(columns: &[&str], subjects: &[Subject]) -> String {
    let names = columns.iter().copied().chain(subjects.iter().map(|subject| subject.name()));
    let names: Vec<&str> = names.collect();
    format!("| {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len()))
}

/// Time over native time, by workload, class and in all. `subjects` are those beside the native one.
pub(crate) fn workload_table(
    figures: &Figures,
    workloads: &[Workload],
    subjects: &[Subject],
) -> String {
    let mut text = head(&["workload", "class", "native s"], subjects);
    for workload in workloads {
        let native = cell(figures.cpu_s(workload.name, Subject::Native), 2);
        let _ = write!(text, "| {} | {} | {native} |", workload.name, workload.class.name());
        for subject in subjects {
            let _ = write!(text, " {} |", cell(figures.ratio(workload.name, *subject), 2));
        }
        text.push('\n');
    }
    for class in Class::ALL.into_iter().map(Some).chain([None]) {
        let is_measured = |w: &Workload| class.is_none_or(|class| w.class == class);
        if !workloads.iter().any(is_measured) {
            continue;
        }
        let name = class.map_or("all", Class::name);
        let _ = write!(text, "| **geometric mean** | **{name}** | |");
        for subject in subjects {
            let _ = write!(text, " **{}** |", cell(figures.mean(workloads, class, *subject), 2));
        }
        text.push('\n');
    }
    text
}

/// What the recording guest may take, and what it takes.
pub(crate) fn bounds_table(figures: &Figures, workloads: &[Workload]) -> String {
    let mut text = String::from("| class | at most | recording | |\n| --- | --- | --- | --- |\n");
    for class in Class::ALL.into_iter().map(Some).chain([None]) {
        let bound = class.map_or(BOUND, Class::bound);
        let Some(mean) = figures.mean(workloads, class, Subject::Recording) else { continue };
        let verdict = if mean <= bound { "kept" } else { "**not kept**" };
        let name = class.map_or("all", Class::name);
        let _ = writeln!(text, "| {name} | {bound:.1} | {mean:.2} | {verdict} |");
    }
    text
}

/// One line on each pair of subjects of which one is to be at least as fast as the other.
pub(crate) fn comparisons(figures: &Figures, workloads: &[Workload]) -> String {
    let mut text = String::new();
    for (slower, faster, what) in [
        (Subject::Recording, Subject::Qemu, "Recording is slower than QEMU"),
        (Subject::Recording, Subject::QemuRecording, "Recording is slower than QEMU recording"),
        (Subject::Replay, Subject::Recording, "Replay is slower than recording"),
    ] {
        if workloads.iter().all(|workload| figures.cpu_s(workload.name, faster).is_none()) {
            continue;
        }
        let found = figures.slower(workloads, slower, faster);
        let found: Vec<String> =
            found.iter().map(|(name, times)| format!("{name} ({times:.2} times)")).collect();
        let which = if found.is_empty() { "nowhere".to_owned() } else { found.join(", ") };
        let _ = writeln!(text, "- {what}: {which}.");
    }
    text
}

/// Seconds to the first line of the disk's first program, on the clock and on the CPU.
pub(crate) fn boot_table(
    figures: &Figures,
    boots: &[&'static str],
    subjects: &[Subject],
) -> String {
    let mut text = head(&["kernel command line"], subjects);
    for boot in boots {
        let _ = write!(text, "| {boot} |");
        for subject in subjects {
            let spent = figures.median(boot, *subject);
            let _ = match spent {
                Some(spent) => write!(text, " {:.2} ({:.2}) |", spent.wall_s, spent.cpu_s),
                None => write!(text, " - |"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::workloads::WORKLOADS;

    fn of(name: &str) -> Workload {
        *WORKLOADS.iter().find(|workload| workload.name == name).unwrap()
    }

    fn figures(list: &[(&'static str, Subject, &[f64])]) -> Figures {
        let mut figures = Figures::default();
        for (workload, subject, rounds) in list {
            for cpu_s in *rounds {
                figures.add(workload, *subject, Spent { cpu_s: *cpu_s, wall_s: 9.0 });
            }
        }
        figures
    }

    #[test]
    fn a_mean_is_over_the_medians_of_a_class() {
        let figures = figures(&[
            ("gzip", Subject::Native, &[1.0, 1.0, 50.0]),
            ("gzip", Subject::Recording, &[0.1, 2.0, 3.0]),
            ("xz", Subject::Native, &[2.0]),
            ("xz", Subject::Recording, &[16.0]),
            ("pipe", Subject::Native, &[1.0]),
        ]);
        let workloads = [of("gzip"), of("xz"), of("pipe")];
        let mean = |class| figures.mean(&workloads, class, Subject::Recording);
        assert!((mean(Some(Class::Integer)).unwrap() - 4.0).abs() < 1e-9);
        // Without all of its workloads there is no mean.
        assert_eq!(mean(Some(Class::System)), None);
        assert_eq!(mean(None), None);
        assert_eq!(mean(Some(Class::Memory)), None);
    }

    #[test]
    fn what_is_slower_than_it_should_be_is_named() {
        let figures = figures(&[
            ("gzip", Subject::Recording, &[2.0]),
            ("gzip", Subject::Qemu, &[3.0]),
            ("gzip", Subject::Replay, &[2.5]),
            ("xz", Subject::Recording, &[3.0]),
            ("xz", Subject::Qemu, &[2.0]),
            ("xz", Subject::Replay, &[3.0]),
        ]);
        let text = comparisons(&figures, &[of("gzip"), of("xz")]);
        let expected = "- Recording is slower than QEMU: xz (1.50 times).\n\
             - Replay is slower than recording: gzip (1.25 times).\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_has_a_dash_where_nothing_was_measured() {
        let figures =
            figures(&[("gzip", Subject::Native, &[2.0]), ("gzip", Subject::Recording, &[5.0])]);
        let subjects = [Subject::Recording, Subject::Qemu];
        let table = workload_table(&figures, &[of("gzip")], &subjects);
        assert!(table.contains("\n| gzip | integer | 2.00 | 2.50 | - |\n"), "{table}");
        assert!(table.contains("| **all** | | **2.50** | **-** |"), "{table}");
        assert!(bounds_table(&figures, &[of("gzip")]).contains("| all | 3.0 | 2.50 | kept |"));
        let boots = boot_table(&figures, &["gzip"], &subjects);
        assert!(boots.contains("| gzip | 9.00 (5.00) | - |"), "{boots}");
    }
}
