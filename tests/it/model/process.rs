//! A process of the model: what runs in it can be stopped at any await, and killed there.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

#[derive(Default)]
struct Inner {
    stalled: bool,
    waker: Option<Waker>,
}

/// Whether the process runs. Its sockets live on while it does not.
#[derive(Clone, Default)]
pub(crate) struct Process {
    inner: Arc<Mutex<Inner>>,
    resumed: Arc<Notify>,
}

impl Process {
    pub(crate) fn stall(&self) {
        self.inner.lock().expect("never poisoned").stalled = true;
    }

    pub(crate) fn resume(&self) {
        let waker = {
            let mut inner = self.inner.lock().expect("never poisoned");
            inner.stalled = false;
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.resumed.notify_waiters();
    }

    /// Waits until the process runs.
    pub(crate) async fn running(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.inner.lock().expect("never poisoned").stalled {
                return;
            }
            resumed.await;
        }
    }

    /// Runs `work` in this process: it makes no step while the process is stalled.
    pub(crate) fn run<F: Future>(&self, work: F) -> Stallable<F> {
        Stallable { work: Box::pin(work), process: self.clone() }
    }
}

pub(crate) struct Stallable<F> {
    work: Pin<Box<F>>,
    process: Process,
}

impl<F: Future> Future for Stallable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut inner = self.process.inner.lock().expect("never poisoned");
            if inner.stalled {
                inner.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.work.as_mut().poll(cx)
    }
}
