//! A node: one thread that lives in one network namespace for its whole life, with an async runtime of its own.
//!
//! Work is sent to the thread; nothing that holds a namespace crosses an `.await` on another thread.

use super::SandboxError;
use crate::history::now;
use std::{cell::Cell, fs::File, future::Future, io, os::fd::OwnedFd, pin::Pin, thread};
use tokio::{
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
};

thread_local! {
    /// When the calling thread woke up last, and the time before that: CLOCK_REALTIME, nanoseconds.
    static WOKEN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The earliest time, of CLOCK_REALTIME in nanoseconds, at which something can have happened of which the calling node learns now:
/// what had happened before, it was told of when it woke up the last time but one. A kernel that keeps a thread waiting tells it late,
/// of many things at once, and nobody else knows how late. `None` where that is not known.
pub(crate) fn earliest() -> Option<u64> {
    let (_, before) = WOKEN.get();
    (before != 0).then_some(before)
}

fn woken() {
    let (last, _) = WOKEN.get();
    WOKEN.set((now(libc::CLOCK_REALTIME), last));
}

type Work = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A handle to the thread; the thread ends, and what it spawned with it, when the handle is dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    work: Option<mpsc::UnboundedSender<Work>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Node {
    /// Starts a node in a network namespace of its own.
    pub async fn new(name: &str) -> Result<Self, SandboxError> {
        Self::start(name, || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(super::io_error)
                .map_err(|source| SandboxError::Namespaces { what: "network", hint: "CAP_SYS_ADMIN is needed", source })
        })
        .await
    }

    /// Starts a node whose thread first does `enter`, which moves it where it belongs.
    pub async fn start(
        name: &str,
        enter: impl FnOnce() -> Result<(), SandboxError> + Send + 'static,
    ) -> Result<Self, SandboxError> {
        let (work, mut queue) = mpsc::unbounded_channel::<Work>();
        let (entered, has_entered) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let runtime = match enter().and_then(|()| {
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .on_thread_unpark(woken)
                        .build()
                        .map_err(SandboxError::system("start a runtime"))
                }) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(entered.send(Err(error))),
                };
                let _ = entered.send(Ok(()));
                LocalSet::new().block_on(&runtime, async move {
                    while let Some(work) = queue.recv().await {
                        spawn_local(work());
                    }
                });
            })
            .map_err(SandboxError::system("start a thread"))?;
        has_entered.await.map_err(|_| SandboxError::NodeGone(name.into()))??;
        Ok(Self { name: name.into(), work: Some(work), thread: Some(thread) })
    }

    /// Runs a future on the node's thread and gives back what it gives.
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T, SandboxError>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (done, result) = oneshot::channel();
        let gone = || SandboxError::NodeGone(self.name.clone());
        self.work
            .as_ref()
            .ok_or_else(gone)?
            .send(Box::new(move || {
                Box::pin(async move {
                    let _ = done.send(work().await);
                })
            }))
            .map_err(|_| gone())?;
        result.await.map_err(|_| gone())
    }

    /// The node's network namespace.
    pub async fn network_namespace(&self) -> Result<OwnedFd, SandboxError> {
        self.run(|| async { own_network_namespace() })
            .await?
            .map_err(SandboxError::system("open the node's network namespace"))
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The calling thread's network namespace.
pub(crate) fn own_network_namespace() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(Into::into)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.work.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
