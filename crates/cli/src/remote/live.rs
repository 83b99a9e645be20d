//! One line on standard error that says how far a run is. On a terminal it changes in place; else it becomes plain lines.

use std::io::Write as _;
use std::time::Duration;

use interlock_model::run::RunState;
use interlock_model::wire::Progress;
use tokio::time::Instant;

use super::terminal::width;
use super::text::{line, number, seconds, shortened};
use super::ui::Ui;

/// Without a terminal, progress is printed at most this often.
const PLAIN_PAUSE: Duration = Duration::from_secs(1);
/// Cells of the bar.
const BAR: usize = 20;

/// The line.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    ui: &'a Ui,
    action: String,
    state: String,
    since: Instant,
    progress: Option<Progress>,
    message: Option<String>,
    shown: bool,
    hidden: bool,
    held: Vec<String>,
    last_plain: Option<Instant>,
    unsaid: bool,
}

impl<'a> Live<'a> {
    pub(crate) fn new(ui: &'a Ui, action: &str) -> Self {
        let (action, state) = (line(action), "queued".to_owned());
        Self {
            ui,
            action,
            state,
            since: Instant::now(),
            progress: None,
            message: None,
            shown: false,
            hidden: false,
            held: Vec::new(),
            last_plain: None,
            unsaid: false,
        }
    }

    pub(crate) fn state(&mut self, state: RunState) {
        if self.state == state.as_str() {
            return;
        }
        state.as_str().clone_into(&mut self.state);
        if state == RunState::Running {
            self.since = Instant::now();
        }
        if self.ui.live {
            self.redraw();
        } else {
            self.say_unsaid();
            // The end is told by the command, with the time it took.
            if !state.is_final() {
                self.ui.note(&format!("{} {}", self.action, self.state));
            }
        }
    }

    pub(crate) fn progress(&mut self, progress: Progress) {
        if let Some(message) = &progress.message {
            self.message = Some(line(message));
        }
        self.progress = Some(progress);
        if self.ui.live {
            self.redraw();
        } else if self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_PAUSE) {
            self.unsaid = true;
            self.say_unsaid();
        } else {
            self.unsaid = true;
        }
    }

    fn say_unsaid(&mut self) {
        if std::mem::take(&mut self.unsaid) {
            self.last_plain = Some(Instant::now());
            self.ui.note(&self.text(usize::MAX));
        }
    }

    /// A line that stays, above the changing one.
    pub(crate) fn note(&mut self, text: &str) {
        if self.hidden {
            // A question is on the screen, and its answer is being typed.
            self.held.push(text.to_owned());
            return;
        }
        self.clear();
        self.ui.note(text);
        self.redraw();
    }

    /// As [`Live::note`], also for those who want quiet.
    pub(crate) fn warn(&mut self, text: &str) {
        self.clear();
        self.ui.warn(text);
        self.redraw();
    }

    /// Draws the line again, for the time in it.
    pub(crate) fn redraw(&mut self) {
        if !self.ui.live || self.hidden {
            return;
        }
        // Clearing comes after the text, so that the line does not flicker.
        let text = format!("\r{}\x1b[K", self.text(width().saturating_sub(1)));
        let _ = std::io::stderr().write_all(text.as_bytes());
        self.shown = true;
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }

    /// Makes room for a question until [`Live::resume`].
    pub(crate) fn pause(&mut self) {
        self.clear();
        self.hidden = true;
    }

    pub(crate) fn resume(&mut self) {
        self.hidden = false;
        for text in std::mem::take(&mut self.held) {
            self.ui.note(&text);
        }
        self.redraw();
    }

    /// The end: nothing of it stays on the screen.
    pub(crate) fn finish(mut self) {
        self.say_unsaid();
        if self.hidden {
            // The cursor is behind the question that needs no answer any more.
            self.ui.note("");
            self.resume();
        }
        self.clear();
    }

    fn text(&self, width: usize) -> String {
        let mut text = format!("{} {} {}", self.action, self.state, elapsed(self.since.elapsed()));
        if let Some(progress) = &self.progress {
            text.push_str("  ");
            text.push_str(&bar(progress));
        }
        if let Some(message) = &self.message {
            text.push_str("  ");
            text.push_str(message);
        }
        shortened(&text, width)
    }
}

fn elapsed(time: Duration) -> String {
    if time < Duration::from_mins(1) { format!("{} s", time.as_secs()) } else { seconds(time.as_secs_f64()) }
}

/// `[=====>    ] 2/3` when the whole is known, `2` when not.
fn bar(progress: &Progress) -> String {
    let Some(total) = progress.total.filter(|total| total.is_finite() && *total > 0.0) else {
        return number(progress.current);
    };
    let share = (progress.current / total).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and the cells of the bar"
    )]
    let full = if share.is_nan() { 0 } else { (share * BAR as f64).round() as usize };
    let head = if full > 0 && full < BAR { ">" } else { "" };
    let filled = format!("{}{head}", "=".repeat(full - head.len()));
    format!("[{filled:BAR$}] {}/{}", number(progress.current), number(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(current: f64, total: Option<f64>) -> String {
        bar(&Progress { current, total, message: None })
    }

    #[test]
    fn a_bar_never_leaves_its_frame() {
        assert_eq!(at(0.0, Some(3.0)), "[                    ] 0/3");
        assert_eq!(at(1.5, Some(3.0)), "[=========>          ] 1.5/3");
        assert_eq!(at(3.0, Some(3.0)), "[====================] 3/3");
        assert_eq!(at(9.0, Some(3.0)), "[====================] 9/3");
        assert_eq!(at(-1.0, Some(3.0)), "[                    ] -1/3");
        assert_eq!(at(7.0, None), "7");
        assert_eq!(at(7.0, Some(0.0)), "7");
    }
}
