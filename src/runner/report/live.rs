//! What is shown while tests run: a line for each running test on a terminal, a line for each that ended anywhere.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::diagnostics::{self, Drawn};
use super::paint::Paint;
use super::text;
use crate::runner::outcome::{Case, Counts, TestResult};

/// How often the lines of running tests are drawn again.
const TICK: Duration = Duration::from_millis(120);

/// Characters of a reason that are shown: the rest comes with the summary.
const REASON: usize = 160;

/// Who is told how tests get on, from any thread.
pub trait Observer: Send + Sync {
    /// A test began, one of `total` in all. It may begin again.
    fn started(&self, id: &str, total: usize);
    /// A case within a test began.
    fn case_started(&self, id: &str, path: &[String]);
    /// A case within a test ended.
    fn case(&self, id: &str, case: &Case);
    /// A test ended, and will not begin again.
    fn ended(&self, test: &TestResult);
    /// Something else to say, on one line.
    fn note(&self, text: &str);
    /// Does `work`, which has the terminal to itself.
    fn aside(&self, work: &mut dyn FnMut()) {
        work();
    }
}

/// The observer that suits standard error. What it shows goes away when it is dropped, except lines of tests that ended.
pub fn on_stderr() -> Box<dyn Observer> {
    let dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
    if std::io::stderr().is_terminal() && !dumb {
        let mut live = Live::new(ProgressDrawTarget::stderr(), Paint::of_stderr());
        live.drawn = Some(Drawn::on_stderr(live.lines.clone()));
        Box::new(live)
    } else {
        Box::new(Plain::new(std::io::stderr()))
    }
}

/// How far all tests are.
#[derive(Debug, Default)]
struct Course {
    total: usize,
    counts: Counts,
}

impl Course {
    /// One more ended: `fail      3/20  6.12/small/timers  3.2 s  5 cases: 4 passed, 1 failed; 1 of 5 cases failed`.
    fn ended(&mut self, test: &TestResult, paint: Paint) -> String {
        self.counts.add(test.status);
        let total = self.total.to_string();
        let number = format!("{:>width$}/{total}", self.counts.total(), width = total.len());
        let mut line = paint.status(test.status, &format!("{:7}", test.status.name()));
        line += &format!("  {number}  {}  {}", text::line(&test.id), paint.dim(&text::duration(test.seconds)));
        let cases: Counts = test.cases.iter().map(|case| case.status).collect();
        if cases.total() > 0 {
            line += &format!("  {}: {}", text::number(cases.total(), "case"), text::counts(&cases));
        }
        if let Some(reason) = &test.reason {
            line += &format!("  {}", text::short(reason, REASON));
        }
        line
    }
}

/// One line for each test that ended, for logs.
#[derive(Debug)]
pub struct Plain<W> {
    state: Mutex<(Course, W)>,
}

impl<W: Write> Plain<W> {
    /// Lines go to `out`, which may fail: tests go on without anybody who looks.
    pub fn new(out: W) -> Self {
        Self { state: Mutex::new((Course::default(), out)) }
    }

    fn write(out: &mut W, line: &str) {
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

impl<W: Write + Send> Observer for Plain<W> {
    fn started(&self, _: &str, total: usize) {
        locked(&self.state).0.total = total;
    }

    fn case_started(&self, _: &str, _: &[String]) {}

    fn case(&self, _: &str, _: &Case) {}

    fn ended(&self, test: &TestResult) {
        let (course, out) = &mut *locked(&self.state);
        let line = course.ended(test, Paint::NONE);
        Self::write(out, &line);
    }

    fn note(&self, text: &str) {
        Self::write(&mut locked(&self.state).1, &text::line(text));
    }
}

/// A line for each running test, which moves: on terminals.
#[derive(Debug)]
pub struct Live {
    lines: MultiProgress,
    /// The lowest line: all tests.
    whole: ProgressBar,
    paint: Paint,
    state: Mutex<State>,
    /// Unless they are drawn elsewhere.
    drawn: Option<Drawn>,
}

#[derive(Debug, Default)]
struct State {
    course: Course,
    running: HashMap<String, Running>,
}

/// A running test.
#[derive(Debug)]
struct Running {
    bar: ProgressBar,
    cases: Counts,
    current: String,
}

impl Running {
    fn show(&self) {
        let counts = if self.cases.total() > 0 { text::counts(&self.cases) } else { String::new() };
        self.bar.set_message(format!("{counts}  {}", self.current));
    }
}

impl Live {
    /// Lines are drawn on `target`.
    pub fn new(target: ProgressDrawTarget, paint: Paint) -> Self {
        let lines = MultiProgress::with_draw_target(target);
        let whole = lines.add(bar("{time}  {wide_msg}"));
        whole.enable_steady_tick(TICK);
        Self { lines, whole, paint, state: Mutex::default(), drawn: None }
    }

    fn print(&self, line: &str) {
        let _ = self.lines.println(line);
    }

    fn show_whole(&self, state: &State) {
        let Course { total, counts } = &state.course;
        self.whole.set_message(format!("{} of {}: {}", counts.total(), tests(*total), text::counts(counts)));
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Running)) {
        if let Some(running) = locked(&self.state).running.get_mut(id) {
            change(running);
            running.show();
        }
    }
}

impl Observer for Live {
    fn started(&self, id: &str, total: usize) {
        let state = &mut *locked(&self.state);
        state.course.total = total;
        if let Some(earlier) = state.running.remove(id) {
            self.lines.remove(&earlier.bar);
        }
        let bar = self.lines.insert_before(&self.whole, bar("{spinner} {prefix}  {time}  {wide_msg}"));
        bar.set_prefix(text::line(id));
        bar.enable_steady_tick(TICK);
        state.running.insert(id.to_string(), Running { bar, cases: Counts::default(), current: String::new() });
        self.show_whole(state);
    }

    fn case_started(&self, id: &str, path: &[String]) {
        self.update(id, |running| running.current = text::line(&path.join("/")));
    }

    fn case(&self, id: &str, case: &Case) {
        self.update(id, |running| running.cases.add(case.status));
    }

    fn ended(&self, test: &TestResult) {
        let state = &mut *locked(&self.state);
        if let Some(running) = state.running.remove(&test.id) {
            running.bar.finish_and_clear();
            self.lines.remove(&running.bar);
        }
        let line = state.course.ended(test, self.paint);
        self.print(&line);
        self.show_whole(state);
    }

    fn note(&self, text: &str) {
        self.print(&text::line(text));
    }

    fn aside(&self, work: &mut dyn FnMut()) {
        diagnostics::aside(&self.lines, work);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.lines.clear();
    }
}

fn tests(total: usize) -> String {
    text::number(u64::try_from(total).unwrap_or(u64::MAX), "test")
}

fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let elapsed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&text::duration(state.elapsed().as_secs_f64()));
    };
    ProgressBar::new_spinner().with_style(style.with_key("time", elapsed))
}

/// A thread that panicked has left nothing half done that matters here.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;
    use crate::runner::outcome::Status;
    use crate::runner::report::sample::{self, HOSTILE};

    /// What came to a terminal of 200 columns.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn put(&self, text: &str) -> io::Result<()> {
            locked(&self.0).push_str(text);
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            200
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            self.put("<up>")
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.put(&format!("{text}\n"))
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.put(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            self.put("<clear>")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_ended_test_is_exactly_one_line_of_a_log() {
        let outcome = sample::outcome();
        let mut log = Vec::new();
        let plain = Plain::new(&mut log);
        for test in &outcome.tests {
            plain.started(&test.id, outcome.tests.len());
            test.cases.iter().for_each(|case| plain.case(&test.id, case));
            plain.ended(test);
        }
        plain.note(HOSTILE);
        let log = String::from_utf8(log).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), outcome.tests.len() + 1);
        assert!(!log.contains(|c: char| c.is_control() && c != '\n'));
        assert_eq!(lines[0], "pass      1/21  6.12/cpus=1/kselftest-timers  4.5 s  6 cases: 6 passed");
        let failed = "fail     13/21  6.12/cpus=1/kunit  4.5 s  4 cases: 1 passed, 1 skipped, 1 failed as expected, 1 \
                      failed  1 of 4 cases failed";
        assert_eq!(lines[12], failed);
    }

    #[test]
    fn a_terminal_shows_what_runs() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255);
        let live = Live::new(target, Paint::ALL);
        let test = sample::test("6.12", "small", "timers", Status::Fail);
        live.started(&test.id, 3);
        live.case_started(&test.id, &["posix".into(), HOSTILE.into()]);
        live.case(&test.id, &sample::case(&["posix", "x"], Status::Pass, "", ""));
        live.case("unknown", &sample::case(&["x"], Status::Pass, "", ""));
        live.lines.suspend(|| screen.put("--- then\n")).unwrap();
        live.ended(&test);
        live.note("a note");
        drop(live);
        let shown = locked(&screen.0).clone();
        let (running, ended) = shown.split_once("--- then\n").unwrap();
        assert!(running.contains("6.12/small/timers") && running.contains("1 passed  posix/"), "{running}");
        assert!(running.contains("0 of 3 tests: none"), "{running}");
        assert!(ended.contains("\u{1b}[31mfail   \u{1b}[0m  1/3  6.12/small/timers  \u{1b}[2m4.5 s"), "{ended}");
        assert!(ended.contains("1 of 3 tests: 1 failed") && ended.contains("a note"), "{ended}");
        assert!(!shown.contains('\u{7}') && !shown.contains("\u{1b}]"), "{shown:?}");
    }
}
