//! Telling the service manager how it goes (sd_notify(3)): ready, alive, stopping. Without one, nothing is told.
//!
//! The sign of life comes from the runtime's own timer: a runtime whose threads all hang gives none, and the manager starts the
//! server anew.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// A sign of life is wanted at least this often.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that has started this process, by its variables; `None` when there is none, or it cannot be reached.
    pub(crate) fn of_this_process() -> Option<Self> {
        let place = std::env::var("NOTIFY_SOCKET").ok().filter(|place| !place.is_empty())?;
        let address = match place.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&place),
        };
        let opened = address.and_then(|address| Ok((UnixDatagram::unbound()?, address)));
        let (socket, address) = opened
            .inspect_err(|error| tracing::warn!(place, %error, "the service manager cannot be told anything"))
            .ok()?;
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let period = std::env::var("WATCHDOG_USEC").ok().and_then(|micros| micros.parse().ok());
        let watchdog = period.filter(|_| ours).filter(|micros| *micros > 0).map(Duration::from_micros);
        Some(Self { socket, address, watchdog })
    }

    fn tell(&self, what: &str) {
        if let Err(error) = self.socket.send_to_addr(what.as_bytes(), &self.address) {
            tracing::warn!(what, %error, "the service manager was not told");
        }
    }

    /// The server answers. Gives signs of life from here on, until dropped or told to stop.
    pub(crate) fn ready(self) -> Supervised {
        self.tell("READY=1");
        let manager = std::sync::Arc::new(self);
        let alive = manager.watchdog.map(|period| {
            let manager = std::sync::Arc::clone(&manager);
            tokio::spawn(async move {
                // Twice in each period, so that one that comes late is no end.
                let mut ticks = tokio::time::interval(period / 2);
                loop {
                    ticks.tick().await;
                    manager.tell("WATCHDOG=1");
                }
            })
        });
        Supervised { manager, alive }
    }
}

/// A server whose manager knows that it is ready.
#[derive(Debug)]
pub(crate) struct Supervised {
    manager: std::sync::Arc<Manager>,
    alive: Option<tokio::task::JoinHandle<()>>,
}

impl Supervised {
    /// The server ends on purpose.
    pub(crate) fn stopping(&self) {
        self.manager.tell("STOPPING=1");
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Some(alive) = &self.alive {
            alive.abort();
        }
    }
}
