//! Service rules in nf_tables: one verdict map look-up finds a packet's service, however many
//! there are, and the service's own chain picks a backend.
//!
//! ```text
//! prerouting, output ─▶ services: address . protocol . port ─▶ chain of the service
//!                                 local address, protocol . port ─▶ the same, for node ports
//! chain of a service: allowed sources, masquerade mark, affinity, random backend, DNAT
//! postrouting: masquerade what is marked, and what a pod sent to itself
//! input, forward, output: reject what is for a service without backends
//! ```

mod plan;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use keelson_ports::{Error, PacketRules, Result, ServiceRules};

use crate::conntrack::{self, Translations};
use crate::nft::Applier;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRulesConfig {
    /// The table's name; instances on one machine have different ones.
    pub table: String,
    /// The bit of the packet mark that asks for masquerading.
    pub masquerade_mark: u32,
    /// Addresses that Services alone have.
    pub service_cidrs: Vec<IpNet>,
}

impl Default for PacketRulesConfig {
    fn default() -> Self {
        PacketRulesConfig {
            table: "keelson".into(),
            masquerade_mark: 0x4000,
            service_cidrs: Vec::new(),
        }
    }
}

struct State {
    applier: Applier,
    /// Where the rules that the kernel has lead UDP; `None` before the first.
    udp: Option<Translations>,
}

/// [`PacketRules`] on nf_tables, in the network namespace of the process.
#[derive(Clone)]
pub struct NftRules {
    config: PacketRulesConfig,
    state: Arc<Mutex<State>>,
}

impl NftRules {
    pub fn new(config: PacketRulesConfig) -> Self {
        let state = State {
            applier: Applier::default(),
            udp: None,
        };
        NftRules {
            config,
            state: Arc::new(Mutex::new(state)),
        }
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&PacketRulesConfig, &mut State) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (config, state) = (self.config.clone(), Arc::clone(&self.state));
        let task = tokio::task::spawn_blocking(move || {
            work(
                &config,
                &mut state.lock().unwrap_or_else(PoisonError::into_inner),
            )
        });
        match task.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Err(Error::Unsupported(
                "the kernel has no nf_tables; load the module nf_tables or use a kernel that has it".into(),
            )),
            Ok(Err(e)) => Err(Error::Failed(format!("cannot program the packet rules: {e}"))),
            Err(e) => Err(Error::Failed(format!("programming the packet rules failed: {e}"))),
        }
    }
}

#[async_trait]
impl PacketRules for NftRules {
    async fn apply(&self, rules: &ServiceRules) -> Result<()> {
        let rules = rules.clone();
        self.blocking(move |config, state| {
            state.applier.apply(plan::table(config, &rules))?;
            forget_stale(config, state, plan::udp_translations(&rules));
            Ok(())
        })
        .await
    }

    async fn clear(&self) -> Result<()> {
        self.blocking(|config, state| {
            state.applier.clear(&config.table)?;
            forget_stale(config, state, Translations::default());
            state.udp = None;
            Ok(())
        })
        .await
    }
}

/// Reads the connection tracker only when UDP goes elsewhere than before.
fn forget_stale(config: &PacketRulesConfig, state: &mut State, now: Translations) {
    if state.udp.as_ref() == Some(&now) {
        return;
    }
    let before = state.udp.take().unwrap_or_default();
    if let Err(error) = conntrack::reconcile(&before, &now, &config.service_cidrs) {
        // The rules stand; old UDP flows last until they time out.
        tracing::warn!(%error, "cannot remove stale connection tracking entries");
    }
    state.udp = Some(now);
}
