//! Giving a running connector another file: it stops reading at the end of a transaction, settles everything read so far under the old one, and goes on
//! behind it under the new one. Nothing is repeated and nothing is left out, and no transaction is told by two files, unless a table that
//! changed in the middle of one had stopped it there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::config::Connector;

/// A connector that does not settle what it has read within this keeps its file: its target is away or slow.
pub(super) const SETTLE_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// Why a connector kept its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSwitched {
    /// Not all that was read is settled, and there is no telling when it will be.
    #[error("what was read is not settled within {} s, because the target is away or slow", SETTLE_WITHIN.as_secs())]
    NotSettled,
    /// No connector of this name runs here.
    #[error("it does not run in this process")]
    NotRunning,
}

/// Another file for a connector, and who waits for it to be in use.
pub(super) struct Switch {
    pub(super) connector: Arc<Connector>,
    pub(super) done: oneshot::Sender<Result<(), NotSwitched>>,
}

/// The way to every connector of a process.
#[derive(Debug)]
pub struct Switches {
    connectors: BTreeMap<String, mpsc::Sender<Switch>>,
}

/// The other end: what the connectors listen to.
#[derive(Default)]
pub struct Listeners(pub(super) BTreeMap<String, mpsc::Receiver<Switch>>);

impl Switches {
    /// For connectors of these names.
    #[must_use]
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> (Switches, Listeners) {
        let (mut connectors, mut listeners) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            let (send, receive) = mpsc::channel(1);
            connectors.insert(name.to_owned(), send);
            listeners.insert(name.to_owned(), receive);
        }
        (Switches { connectors }, Listeners(listeners))
    }

    /// Gives the connector of this name another file, and waits until it is in use.
    ///
    /// # Errors
    /// When it kept the one it had.
    pub async fn switch(&self, connector: Arc<Connector>) -> Result<(), NotSwitched> {
        let Some(send) = self.connectors.get(&connector.name) else { return Err(NotSwitched::NotRunning) };
        let (done, answered) = oneshot::channel();
        send.send(Switch { connector, done }).await.map_err(|_| NotSwitched::NotRunning)?;
        answered.await.unwrap_or(Err(NotSwitched::NotRunning))
    }
}

/// The next wish for another file; for ever none where nobody can have one.
pub(super) async fn wished(listener: &mut Option<mpsc::Receiver<Switch>>) -> Switch {
    if let Some(receiver) = listener {
        if let Some(switch) = receiver.recv().await {
            return switch;
        }
        *listener = None;
    }
    std::future::pending().await
}
