//! Wall-clock time and sleeping, so that tests can turn the hands.

use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;

pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> SystemTime;
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}
