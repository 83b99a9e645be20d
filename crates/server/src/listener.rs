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
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConnectionLimits, ServerConfig};
use crate::connection::preamble::{self, BadPreamble};
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
    door: Arc<Door>,
}

/// What holds for every connection of a listener.
struct Door {
    open: Arc<Mutex<Open>>,
    tls: Option<Arc<Keeper>>,
    limits: ConnectionLimits,
    trusted_proxies: Vec<IpNet>,
    proxy_protocol: Vec<IpNet>,
    entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .field("tls", &self.door.tls.is_some())
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

fn within(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&address))
}

impl Listener {
    /// Takes a bound socket. `entropy` is for the ids of requests that no handler sees.
    pub fn new(
        tcp: TcpListener,
        tls: Option<Arc<Keeper>>,
        config: &ServerConfig,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let door = Door {
            open: Arc::default(),
            tls,
            limits: config.connections,
            trusted_proxies: config.trusted_proxies.clone(),
            proxy_protocol: config.proxy_protocol.clone(),
            entropy,
        };
        Self { tcp, door: Arc::new(door) }
    }

    /// A bound socket for probes and metrics: plain HTTP, few connections, no proxies.
    pub fn internal(tcp: TcpListener, entropy: Arc<dyn Entropy>) -> Self {
        let door = Door {
            open: Arc::default(),
            tls: None,
            limits: ConnectionLimits::internal(),
            trusted_proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            entropy,
        };
        Self { tcp, door: Arc::new(door) }
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
            if let Some(place) = self.door.place(address.ip()) {
                let door = Arc::clone(&self.door);
                tasks.spawn(door.enter(stream, address, place, router.clone(), stop.clone()));
            }
        }
    }
}

impl Door {
    /// A place for a connection from this address, or none, which is counted.
    fn place(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let Self { open, limits, .. } = self;
        let place = if within(&self.trusted_proxies, address) || within(&self.proxy_protocol, address) {
            Place::take(open, address, limits.per_address.max(limits.total / 2), limits.total)
        } else {
            Place::take(open, counted(address), limits.per_address, limits.total)
        };
        if place.is_none() {
            metrics::counter!("orchestrator_blocked_requests_total", "reason" => "overloaded").increment(1);
        }
        place
    }

    /// Serves one connection to its end.
    async fn enter(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        place: Place,
        router: Router,
        stop: CancellationToken,
    ) {
        let _ = stream.set_nodelay(true);
        let (address, place) = if within(&self.proxy_protocol, peer.ip().to_canonical()) {
            let Some(introduced) = self.introduced(&mut stream, peer, place).await else { return };
            introduced
        } else {
            (peer, place)
        };
        let connection = Connection {
            router,
            limits: self.limits,
            stop,
            address,
            activity: Arc::clone(&place.activity),
            entropy: Arc::clone(&self.entropy),
        };
        let evicted = place.activity.evicted.clone();
        tokio::select! {
            () = connection.run(stream, self.tls.clone()) => {}
            () = evicted.cancelled() => {}
        }
        drop(place);
    }

    /// The client of a connection whose peer speaks for others, and a place of its own. `None`: it ends here.
    async fn introduced(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        place: Place,
    ) -> Option<(SocketAddr, Place)> {
        let evicted = place.activity.evicted.clone();
        let read = tokio::select! {
            read = preamble::read(stream) => read,
            () = tokio::time::sleep(self.limits.handshake) => Err(BadPreamble::Missing),
            () = evicted.cancelled() => return None,
        };
        match read {
            Ok(None) => Some((peer, place)),
            Ok(Some(client)) => {
                drop(place);
                Some((client, self.place(client.ip())?))
            }
            Err(error) => {
                metrics::counter!("orchestrator_blocked_requests_total", "reason" => "proxy_protocol")
                    .increment(1);
                tracing::warn!(%error, %peer, "a connection was refused");
                None
            }
        }
    }
}
