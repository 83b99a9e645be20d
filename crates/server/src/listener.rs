//! The accept loop: who may connect, how often, and the graceful end.
//!
//! A connection costs something before it has proved anything. Caps hold per address, where an IPv6 /64 counts as one, and
//! in all; deadlines and rates are `connection`'s. A proxy that is listed as trusted stands for everybody behind it and may
//! hold half of all places; the other half stays for those who come directly. Loopback has no privilege: a script that
//! runs away on this machine is likelier than an attack, and idle connections give way to new ones anyhow.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use interlock_model::Entropy;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConnectionLimits, ServerConfig};
use crate::connection::{Activity, Connection};
use crate::perimeter::limits::counted;
use crate::tls::{Keeper, Presented};

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Socket address.
    pub address: SocketAddr,
    /// The connection is encrypted by us.
    pub tls: bool,
    /// The certificate that it has shown.
    pub certificate: Option<Arc<Presented>>,
}

impl Default for Peer {
    fn default() -> Self {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self { address, tls: false, certificate: None }
    }
}

/// A bound listener and how it speaks.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Keeper>>,
    limits: ConnectionLimits,
    trusted_proxies: Vec<IpNet>,
    entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Connections of each address, the oldest first.
    by_address: HashMap<IpAddr, VecDeque<Arc<Activity>>>,
}

/// A place among the open connections; gives itself back.
struct Place {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
    activity: Arc<Activity>,
}

impl Place {
    /// A place, if need be that of the oldest idle connection of the same address: whoever opens connections and says nothing
    /// must not keep anybody from stopping a robot.
    fn take(open: &Arc<Mutex<Open>>, address: IpAddr, most: usize, total: usize) -> Option<Self> {
        let mut guard = open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *guard;
        let mine = counts.by_address.entry(address).or_default();
        if mine.len() >= most || (counts.total >= total && !mine.is_empty()) {
            let oldest = mine.iter().position(|activity| activity.is_idle())?;
            if let Some(activity) = mine.remove(oldest) {
                activity.evicted.cancel();
                counts.total = counts.total.saturating_sub(1);
            }
        } else if counts.total >= total {
            counts.by_address.remove(&address);
            return None;
        }
        let activity = Arc::new(Activity::default());
        counts.by_address.entry(address).or_default().push_back(Arc::clone(&activity));
        counts.total += 1;
        Some(Self { open: Arc::clone(open), address, activity })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *guard;
        let Some(mine) = counts.by_address.get_mut(&self.address) else { return };
        // An evicted connection has given its place away already.
        if let Some(at) = mine.iter().position(|activity| Arc::ptr_eq(activity, &self.activity)) {
            mine.remove(at);
            counts.total = counts.total.saturating_sub(1);
        }
        if mine.is_empty() {
            counts.by_address.remove(&self.address);
        }
    }
}

impl Listener {
    /// Takes a bound socket. `entropy` is for the ids of requests that no handler sees.
    pub fn new(
        tcp: TcpListener,
        tls: Option<Arc<Keeper>>,
        config: &ServerConfig,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let trusted_proxies = config.trusted_proxies.clone();
        Self { tcp, tls, limits: config.connections, trusted_proxies, entropy }
    }

    /// A place for a connection from this address.
    fn place(&self, open: &Arc<Mutex<Open>>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        if self.trusted_proxies.iter().any(|net| net.contains(&address)) {
            let most = self.limits.per_address.max(self.limits.total / 2);
            return Place::take(open, address, most, self.limits.total);
        }
        Place::take(open, counted(address), self.limits.per_address, self.limits.total)
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `stop`; then takes no more connections, and returns when those that are open have been told. The
    /// connections themselves end in `tasks`.
    pub async fn serve(self, router: Router, stop: CancellationToken, tasks: TaskTracker) {
        let open = Arc::new(Mutex::new(Open::default()));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others must end before more can come.
                    tracing::error!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = self.place(&open, address.ip()) else {
                metrics::counter!("orchestrator_blocked_requests_total", "reason" => "overloaded")
                    .increment(1);
                continue;
            };
            let activity = Arc::clone(&place.activity);
            let connection = Connection {
                router: router.clone(),
                limits: self.limits,
                stop: stop.clone(),
                address,
                activity,
                entropy: Arc::clone(&self.entropy),
            };
            let keeper = self.tls.clone();
            tasks.spawn(async move {
                let evicted = place.activity.evicted.clone();
                let _ = stream.set_nodelay(true);
                tokio::select! {
                    () = connection.run(stream, keeper) => {}
                    () = evicted.cancelled() => {}
                }
                drop(place);
            });
        }
    }
}
