//! Where the streams of an HTTP/2 connection run.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use hyper::rt::Executor;

/// Runs a stream at once, on the connection's own task, and gives it a task of its own only when
/// it has to wait. Most answers are there at the first poll, and then no other thread is woken
/// for them and they leave together with what else the connection has to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct AtOnce;

impl<F> Executor<F> for AtOnce
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // A wake-up that goes nowhere is not lost: the task polls again before it sleeps.
        let mut context = Context::from_waker(Waker::noop());
        if pin!(&mut stream).poll(&mut context) == Poll::Pending {
            tokio::spawn(stream);
        }
    }
}
