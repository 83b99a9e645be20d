//! Watching a run to its end, and leaving only with a decision.
//!
//! Ctrl-C never leaves the robot moving unnoticed: on a terminal it asks, elsewhere it cancels the run. The watch itself never
//! stops following the run while it waits for an answer.

use std::io::Write as _;
use std::time::Duration;

use interlock_client::{Client, ClientError, News};
use interlock_model::RunId;
use interlock_model::device::EventKind;
use interlock_model::wire::{Progress, RunEventView, RunView, StopReport};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::failure::{Failure, exit};
use super::live::Live;
use super::terminal::{Asked, Signals, read_line};
use super::text::{connection_lost, line, number, seconds};
use super::ui::Ui;

/// Longest wait for the record of a run whose last event is there: the event may come before the record is written.
const RECORD_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for the result in it, which may come after its state.
const CONTENT_WAIT: Duration = Duration::from_secs(5);
/// First pause between looks at the record; doubles up to a second.
const RECORD_PAUSE: Duration = Duration::from_millis(20);
const QUESTION: &str = "\nThe run goes on. [d]etach, [c]ancel the run, [s]top the device, [w]atch on? ";

/// How a watch ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The run is over; with the report if it was by an emergency stop from here.
    Over(Box<RunView>, Option<Box<StopReport>>),
    /// The person left; the run goes on.
    Detached,
}

/// How to watch.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Cancel the run when it is not over after this.
    pub(crate) timeout: Option<Duration>,
    /// Somebody wanted to leave before there was a run to watch.
    pub(crate) interrupted: bool,
}

struct Watch<'a> {
    ui: &'a Ui,
    client: &'a Client,
    run: RunId,
    live: Live<'a>,
    answer: Option<oneshot::Receiver<Option<String>>>,
    cancelled: bool,
    timed_out: bool,
    stopped: Option<StopReport>,
}

/// Watches until the run is over or the person leaves.
pub(crate) async fn watch(
    ui: &Ui,
    client: &Client,
    action: &str,
    run: RunId,
    signals: &mut Signals,
    options: Options,
) -> Result<Ended, Failure> {
    let live = Live::new(ui, action);
    let mut watch =
        Watch { ui, client, run, live, answer: None, cancelled: false, timed_out: false, stopped: None };
    let mut news = follow(client, run);
    let mut tick = interval(Duration::from_millis(500));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    if options.interrupted {
        watch.asked(Asked::Interrupt).await?;
    }
    let ended = loop {
        tokio::select! {
            next = news.recv() => match next {
                Some(Ok(next)) => watch.take(next),
                Some(Err(error)) => break Err(watch.lost(error)),
                None => break Ok(true),
            },
            asked = signals.next() => watch.asked(asked).await?,
            answer = answered(&mut watch.answer) => {
                if watch.decided(answer).await? {
                    break Ok(false);
                }
            }
            () = at(deadline), if !watch.timed_out => {
                watch.timed_out = true;
                watch.live.warn("the time limit of --timeout is over; the run is asked to stop");
                watch.cancel("time limit of the caller").await?;
            }
            _ = tick.tick() => watch.live.redraw(),
        }
    };
    let Watch { live, timed_out, stopped, .. } = watch;
    live.finish();
    if !ended? {
        return Ok(Ended::Detached);
    }
    let view = record(client, run).await?;
    if timed_out && view.state == interlock_model::run::RunState::Cancelled {
        let mut failure = Failure::of_run(&view).unwrap_or_else(|| Failure::new(exit::TIMED_OUT, "", ""));
        failure.code = exit::TIMED_OUT;
        failure.error =
            format!("{} was not over within --timeout and was cancelled ({run})", line(&view.action));
        return Err(failure);
    }
    Ok(Ended::Over(Box::new(view), stopped.map(Box::new)))
}

/// Follows in the background: a pending connection must not be dropped whenever something else happens.
fn follow(client: &Client, run: RunId) -> mpsc::Receiver<Result<News, ClientError>> {
    let mut follow = client.follow(run, 0);
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(next) = follow.next().await.transpose() {
            let failed = next.is_err();
            if sender.send(next).await.is_err() || failed {
                return;
            }
        }
    });
    receiver
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The answer to a question, when one was asked.
async fn answered(answer: &mut Option<oneshot::Receiver<Option<String>>>) -> Option<String> {
    let Some(receiver) = answer else { return std::future::pending().await };
    let text = receiver.await.ok().flatten();
    *answer = None;
    text
}

/// Whether the record has the end of the run and what belongs to it.
pub(crate) fn is_whole(view: &RunView) -> bool {
    view.state.is_final() && view.finished_at.is_some()
}

/// The record of a run that is over, over short losses of the connection.
pub(crate) async fn record(client: &Client, run: RunId) -> Result<RunView, Failure> {
    let started = Instant::now();
    let mut pause = RECORD_PAUSE;
    loop {
        let late = started.elapsed() >= RECORD_WAIT;
        match client.run(run).await {
            Ok(view) if is_whole(&view) || (view.state.is_final() && started.elapsed() > CONTENT_WAIT) => {
                return Ok(view);
            }
            Ok(_) if late => {
                let hint = format!("interlock runs show {run}");
                let failure = Failure::new(
                    exit::ERROR,
                    format!("{run} is over, but the server has no record of its end yet"),
                    hint,
                );
                return Err(failure.because("its last event came before its record was written"));
            }
            Err(error) if late || !error.is_passing() => return Err(error.into()),
            _ => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

impl Watch<'_> {
    fn take(&mut self, news: News) {
        match news {
            News::Cut { reason, pause } => {
                let text = connection_lost(&reason);
                self.live.note(&format!("{text} in {}", seconds(pause.as_secs_f64())));
            }
            News::Back => self.live.note("connected again"),
            News::Event(RunEventView { kind, .. }) => self.event(kind),
        }
    }

    fn event(&mut self, kind: EventKind) {
        match kind {
            EventKind::State { state } => self.live.state(state),
            EventKind::Progress { current, total, message } => {
                self.live.progress(Progress { current, total, message });
            }
            EventKind::Log { level, message } => {
                if self.ui.verbose || matches!(level.as_str(), "warning" | "error") {
                    self.live.note(&format!("{}: {}", line(&level), line(&message)));
                }
            }
            EventKind::Metric { name, value, unit, .. } => {
                if self.ui.verbose {
                    let unit = unit.map(|unit| format!(" {}", line(&unit))).unwrap_or_default();
                    self.live.note(&format!("{} = {}{unit}", line(&name), number(value)));
                }
            }
            EventKind::Artifact { name, bytes, .. } => {
                self.live.note(&format!("file {} ({bytes} bytes)", line(&name)));
            }
            EventKind::Rung { rung, outcome, duration_ms } => {
                let rung = serde_json::to_value(rung)
                    .ok()
                    .and_then(|rung| rung.as_str().map(str::to_owned))
                    .unwrap_or_default();
                self.live.note(&format!(
                    "stopping: {} {} after {}",
                    rung.replace('_', " "),
                    line(&outcome),
                    seconds(duration_ms / 1000.0)
                ));
            }
        }
    }

    /// Somebody or something wants us to end.
    async fn asked(&mut self, asked: Asked) -> Result<(), Failure> {
        let first = self.answer.is_none();
        if asked == Asked::Interrupt && self.ui.interactive && first {
            self.live.pause();
            let _ = std::io::stderr().write_all(QUESTION.as_bytes());
            self.answer = Some(read_line());
            return Ok(());
        }
        if self.cancelled {
            let hint = format!(
                "`interlock wait {0}` waits for its end; `interlock stop` stops the device at once",
                self.run
            );
            return Err(Failure::new(exit::INTERRUPTED, format!("left before the end of {}", self.run), hint)
                .because("the run is asked to stop, but it was not over when this command was told to end a second time"));
        }
        self.live.resume();
        self.live.warn(&format!("{} is asked to stop", self.run));
        self.cancel("its caller was interrupted").await
    }

    /// The person's decision; true when they leave.
    async fn decided(&mut self, answer: Option<String>) -> Result<bool, Failure> {
        let Some(answer) = answer else {
            self.live.resume();
            self.cancel("its caller's terminal is gone").await?;
            return Ok(false);
        };
        match answer.trim().to_ascii_lowercase().as_str() {
            "d" | "detach" => return Ok(true),
            "c" | "cancel" => {
                self.live.resume();
                self.cancel("cancelled at the command line").await?;
            }
            "s" | "stop" => {
                self.live.resume();
                self.stopped = Some(
                    self.client
                        .stop(Some("stopped at the command line"))
                        .await
                        .map_err(|error| self.not_stopped(error))?,
                );
            }
            _ => self.live.resume(),
        }
        Ok(false)
    }

    async fn cancel(&mut self, reason: &str) -> Result<(), Failure> {
        self.cancelled = true;
        match self.client.cancel(self.run, Some(reason)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.not_stopped(error)),
        }
    }

    fn not_stopped(&self, error: ClientError) -> Failure {
        let mut failure = Failure::from(error);
        failure.cause = Some(
            failure
                .cause
                .map_or_else(|| failure.error.clone(), |cause| format!("{}: {cause}", failure.error)),
        );
        failure.error = format!("{} could not be stopped and may go on", self.run);
        "interlock stop; if that fails too, use the emergency stop of the device itself"
            .clone_into(&mut failure.hint);
        failure
    }

    fn lost(&self, error: ClientError) -> Failure {
        let mut failure = Failure::from(error);
        let what = format!("{} was not watched to its end and may go on", self.run);
        failure.cause = Some(match failure.cause.take() {
            Some(cause) => format!("{}: {cause}", failure.error),
            None => std::mem::take(&mut failure.error),
        });
        failure.error = what;
        failure.hint = format!("when the server is back: interlock wait {}", self.run);
        failure
    }
}
