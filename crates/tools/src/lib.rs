//! What pipelines reach outside: HTTP services, devices, MCP servers; and the webhooks that tell how a run ended.
//!
//! Each module is a tool or a toolbox of `engine::tools`. None knows the store or a permit; what may be used by whom was
//! decided before. Start with [`net`], which says where requests may go, and [`http`].

pub mod device;
pub mod http;
pub mod limits;
pub mod mcp;
pub mod net;
pub mod telemetry;
pub mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use interlock_engine::tools::{Tool, Toolbox};
use tokio_util::sync::CancellationToken;

/// Tools by their addresses.
#[derive(Default)]
pub struct Shelf(BTreeMap<String, Arc<dyn Tool>>);

impl Shelf {
    /// Puts a tool at an address.
    #[must_use]
    pub fn with(mut self, address: &str, tool: impl Tool + 'static) -> Self {
        self.0.insert(address.to_owned(), Arc::new(tool));
        self
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Toolbox for Shelf {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        self.0.get(address).cloned()
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        self.0.clone()
    }
}

/// Does something, and again after each `pause`, until it is told to stop.
pub(crate) async fn repeat<F: Future<Output = ()>>(
    pause: Duration,
    stop: CancellationToken,
    mut act: impl FnMut() -> F,
) {
    let acting = async {
        loop {
            act().await;
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(acting).await;
}

/// Installs the provider of cryptography where the program has not chosen one (tests).
pub(crate) fn provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

#[cfg(test)]
mod testing;
