//! The accept loop: who may connect, how often, and the graceful end.
//!
//! A connection costs something before it has proved anything. Caps hold per address, where an IPv6 /64 counts as one, and
//! in all; deadlines and rates are `connection`'s. A proxy that is listed as trusted stands for everybody behind it and may
//! hold half of all places; the other half stays for those who come directly. Loopback has no privilege: a script that
//! runs away on this machine is likelier than an attack. Where there is no place, an idle connection of whoever has the most
//! gives way to a new one.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use interlock_model::Entropy;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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

impl Open {
    fn held(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).map_or(0, VecDeque::len)
    }

    /// Ends the oldest idle connection of an address.
    fn evict(&mut self, address: IpAddr) -> Option<()> {
        let theirs = self.by_address.get_mut(&address)?;
        let oldest = theirs.iter().position(|activity| activity.is_idle())?;
        theirs.remove(oldest)?.evicted.cancel();
        self.total = self.total.saturating_sub(1);
        Some(())
    }

    /// Ends an idle connection of whoever has the most, or else one of this address: whoever opens connections from many
    /// addresses and says nothing must not keep anybody from stopping a robot.
    fn make_room(&mut self, address: IpAddr, spared: &[&[IpNet]]) -> Option<()> {
        let mine = self.held(address);
        let is_spared = |other: IpAddr| spared.iter().any(|networks| within(networks, other));
        let largest = self
            .by_address
            .iter()
            .filter(|(other, theirs)| {
                theirs.len() > mine + 1
                    && !is_spared(**other)
                    && theirs.iter().any(|activity| activity.is_idle())
            })
            .max_by_key(|(_, theirs)| theirs.len())
            .map(|(other, _)| *other);
        self.evict(largest.unwrap_or(address))
    }
}

impl Place {
    /// A place among `total`, at most `most` for this address, if need be that of an idle connection. Those of `spared`
    /// networks stay: behind one of their connections there are many.
    fn take(
        open: &Arc<Mutex<Open>>,
        address: IpAddr,
        most: usize,
        total: usize,
        spared: &[&[IpNet]],
    ) -> Option<Self> {
        let mut guard = open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *guard;
        if counts.held(address) >= most {
            counts.evict(address)?;
        } else if counts.total >= total {
            counts.make_room(address, spared)?;
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

/// What the kernel holds of answers that a client does not take, in bytes for each connection. Without a bound it is megabytes.
const UNTAKEN: u32 = 256 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on an address.
///
/// # Errors
/// The operating system's.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(UNTAKEN)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
        let spared: [&[IpNet]; 2] = [&self.trusted_proxies, &self.proxy_protocol];
        let (address, most) = if spared.iter().any(|networks| within(networks, address)) {
            (address, limits.per_address.max(limits.total / 2))
        } else {
            (counted(address), limits.per_address)
        };
        let place = Place::take(open, address, most, limits.total, &spared);
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
        // On the heap, and not once more in what waits for it: thousands of these do nothing but wait.
        let running = Box::pin(connection.run(stream, self.tls.clone()));
        tokio::select! {
            () = running => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn whoever_has_the_most_gives_way_to_whoever_has_none() {
        let open = Arc::default();
        let take = |from: &str| Place::take(&open, address(from), 6, 8, &[]);
        let crowd: Vec<Place> = (0..6).filter_map(|_| take("203.0.113.7")).collect();
        let lawful: Vec<Place> = (0..2).filter_map(|_| take("192.0.2.1")).collect();

        let newcomer = take("198.51.100.9").expect("a place although all are taken");

        assert!(crowd[0].activity.evicted.is_cancelled(), "the oldest of the crowd went");
        assert!(crowd[1..].iter().chain(&lawful).all(|place| !place.activity.evicted.is_cancelled()));
        drop((crowd, lawful, newcomer));
        assert_eq!(open.lock().expect("lock").total, 0);
        assert!(open.lock().expect("lock").by_address.is_empty());
    }

    #[test]
    fn where_nobody_has_more_than_a_fair_share_nobody_gives_way() {
        let open = Arc::default();
        let held: Vec<Place> = (0..4)
            .filter_map(|host| Place::take(&open, address(&format!("203.0.113.{host}")), 6, 4, &[]))
            .collect();

        assert!(Place::take(&open, address("198.51.100.9"), 6, 4, &[]).is_none());
        let again = Place::take(&open, address("203.0.113.0"), 6, 4, &[]);
        assert!(again.is_some() && held[0].activity.evicted.is_cancelled(), "its own idle one gave way");
    }

    #[test]
    fn the_idle_connections_of_a_proxy_are_left_alone() {
        let open = Arc::default();
        let proxies: [IpNet; 1] = ["127.0.0.0/8".parse().expect("a network")];
        let held: Vec<Place> =
            (0..4).filter_map(|_| Place::take(&open, address("127.0.0.1"), 6, 4, &[&proxies])).collect();

        assert!(Place::take(&open, address("198.51.100.9"), 6, 4, &[&proxies]).is_none());
        assert!(held.iter().all(|place| !place.activity.evicted.is_cancelled()));
    }
}
