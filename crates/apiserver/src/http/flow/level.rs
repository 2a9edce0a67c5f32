//! One priority level: its seats, and the queues of those who wait for them.
//!
//! Fair queuing as upstream's: a flow is dealt a hand of queues by its hash and waits in the one
//! with the least work, so that a heavy flow rarely shares a queue with a light one; seats go to
//! the queue whose next request would be served first if all queues shared the level evenly.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// What a request is thought to take until it is over.
const GUESS_S: f64 = 0.003;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queuing {
    pub(super) queues: usize,
    pub(super) hand_size: usize,
    pub(super) length_limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    ConcurrencyLimit,
    QueueFull,
    Timeout,
}

impl Rejection {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::Timeout => "time-out",
        }
    }
}

pub(super) struct Level {
    pub(super) name: String,
    /// Absent where whoever finds no seat is turned away.
    queuing: Option<Queuing>,
    state: Mutex<State>,
}

struct State {
    /// Seats that may be taken; changes with what other levels lend.
    limit: usize,
    seats: usize,
    executing: usize,
    waiting: usize,
    waiting_seats: usize,
    /// The most that was asked for at once since the limit was last set.
    demand_high: usize,
    queues: Vec<Queue>,
    /// Virtual time: seconds of service that each queue with work has had if all were served
    /// evenly since the beginning.
    virtual_now: f64,
    looked_at: Instant,
    dispatched: u64,
    rejected: [u64; 3],
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    seats: usize,
    next_start: f64,
}

struct Waiter {
    seats: usize,
    grant: oneshot::Sender<Seat>,
}

/// Taken seats, given back when dropped.
pub(super) struct Seat {
    level: Arc<Level>,
    seats: usize,
    queue: Option<usize>,
    started: Instant,
}

/// For the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) limit: usize,
    pub(super) seats: usize,
    pub(super) executing: usize,
    pub(super) waiting: usize,
    pub(super) dispatched: u64,
    pub(super) rejected: [u64; 3],
}

impl Level {
    pub(super) fn new(name: &str, limit: usize, queuing: Option<Queuing>) -> Self {
        let queues = queuing.map_or(0, |q| q.queues);
        Self {
            name: name.to_owned(),
            queuing,
            state: Mutex::new(State {
                limit,
                seats: 0,
                executing: 0,
                waiting: 0,
                waiting_seats: 0,
                demand_high: 0,
                queues: std::iter::repeat_with(Queue::default)
                    .take(queues)
                    .collect(),
                virtual_now: 0.0,
                looked_at: Instant::now(),
                dispatched: 0,
                rejected: [0; 3],
            }),
        }
    }

    pub(super) fn queuing(&self) -> Option<Queuing> {
        self.queuing
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats for a request, at once or after a wait of at most `patience`.
    pub(super) async fn enter(
        self: &Arc<Self>,
        flow: u64,
        seats: usize,
        patience: Duration,
    ) -> Result<Seat, Rejection> {
        let waiting = {
            let mut state = self.state();
            state.demand_high = state
                .demand_high
                .max(state.seats + state.waiting_seats + seats);
            if state.waiting == 0 && state.has_room(seats) {
                return Ok(self.seat(&mut state, seats, None));
            }
            let Some(queuing) = self.queuing else {
                state.rejected[Rejection::ConcurrencyLimit as usize] += 1;
                return Err(Rejection::ConcurrencyLimit);
            };
            state.advance();
            let chosen = deal(flow, queuing.queues, queuing.hand_size)
                .min_by_key(|index| {
                    let queue = &state.queues[*index];
                    queue.seats + queue.waiting.iter().map(|w| w.seats).sum::<usize>()
                })
                .unwrap_or(0);
            let now = state.virtual_now;
            let queue = &mut state.queues[chosen];
            if queue.waiting.len() >= queuing.length_limit {
                state.rejected[Rejection::QueueFull as usize] += 1;
                return Err(Rejection::QueueFull);
            }
            if queue.waiting.is_empty() && queue.seats == 0 {
                // An idle queue has saved up nothing.
                queue.next_start = queue.next_start.max(now);
            }
            let (grant, granted) = oneshot::channel();
            queue.waiting.push_back(Waiter { seats, grant });
            state.waiting += 1;
            state.waiting_seats += seats;
            granted
        };
        // Somebody may have left between the look and the wait.
        self.dispatch();
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(seat)) => Ok(seat),
            // A waiter that gave up is found closed when its turn comes.
            Ok(Err(_)) | Err(_) => {
                self.state().rejected[Rejection::Timeout as usize] += 1;
                self.dispatch();
                Err(Rejection::Timeout)
            }
        }
    }

    fn seat(self: &Arc<Self>, state: &mut State, seats: usize, queue: Option<usize>) -> Seat {
        state.seats += seats;
        state.executing += 1;
        state.dispatched += 1;
        Seat {
            level: Arc::clone(self),
            seats,
            queue,
            started: Instant::now(),
        }
    }

    /// Gives free seats to those whose turn it is.
    fn dispatch(self: &Arc<Self>) {
        // A seat that nobody takes any more is dropped outside the lock, which its drop takes.
        let mut unwanted = Vec::new();
        {
            let mut state = self.state();
            state.forget_closed();
            state.advance();
            while let Some(index) = state.next() {
                let waiter = state.queues[index].waiting.pop_front();
                let Some(waiter) = waiter else { break };
                state.waiting -= 1;
                state.waiting_seats -= waiter.seats;
                state.queues[index].seats += waiter.seats;
                state.queues[index].next_start += GUESS_S * waiter.seats as f64;
                let seat = self.seat(&mut state, waiter.seats, Some(index));
                if let Err(seat) = waiter.grant.send(seat) {
                    unwanted.push(seat);
                }
            }
        }
        drop(unwanted);
    }

    fn leave(self: &Arc<Self>, seat: &Seat) {
        let waiting = {
            let mut state = self.state();
            state.advance();
            state.seats -= seat.seats;
            state.executing -= 1;
            if let Some(index) = seat.queue
                && let Some(queue) = state.queues.get_mut(index)
            {
                queue.seats -= seat.seats;
                let actual = seat.started.elapsed().as_secs_f64();
                queue.next_start += (actual - GUESS_S) * seat.seats as f64;
            }
            state.waiting
        };
        if waiting > 0 {
            self.dispatch();
        }
    }

    pub(super) fn set_limit(self: &Arc<Self>, limit: usize) {
        let raised = {
            let mut state = self.state();
            let raised = limit > state.limit;
            state.limit = limit;
            raised && state.waiting > 0
        };
        if raised {
            self.dispatch();
        }
    }

    /// The most that was asked for at once since the last call.
    pub(super) fn take_demand(&self) -> usize {
        let mut state = self.state();
        let now = state.seats + state.waiting_seats;
        std::mem::replace(&mut state.demand_high, now)
    }

    pub(super) fn figures(&self) -> Figures {
        let state = self.state();
        Figures {
            limit: state.limit,
            seats: state.seats,
            executing: state.executing,
            waiting: state.waiting,
            dispatched: state.dispatched,
            rejected: state.rejected,
        }
    }
}

impl State {
    /// A request that wants more than there is runs alone.
    fn has_room(&self, seats: usize) -> bool {
        self.seats + seats <= self.limit || self.executing == 0
    }

    fn advance(&mut self) {
        let now = Instant::now();
        let passed = now.duration_since(self.looked_at).as_secs_f64();
        self.looked_at = now;
        let (mut active, mut demand) = (0usize, 0usize);
        for queue in &self.queues {
            let wanted = queue.seats + queue.waiting.iter().map(|w| w.seats).sum::<usize>();
            demand += wanted;
            active += usize::from(wanted > 0);
        }
        if active > 0 {
            self.virtual_now += passed * demand.min(self.limit) as f64 / active as f64;
        }
    }

    /// The queue whose first request would end first if all were served evenly, when there is room
    /// for it.
    fn next(&self) -> Option<usize> {
        let ends = |queue: &Queue| {
            let first = queue.waiting.front()?;
            Some(queue.next_start + GUESS_S * first.seats as f64)
        };
        let (index, _) = self
            .queues
            .iter()
            .enumerate()
            .filter_map(|(index, queue)| Some((index, ends(queue)?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let first = self.queues[index].waiting.front()?;
        self.has_room(first.seats).then_some(index)
    }

    fn forget_closed(&mut self) {
        let (mut gone, mut gone_seats) = (0, 0);
        for queue in &mut self.queues {
            queue.waiting.retain(|waiter| {
                let closed = waiter.grant.is_closed();
                if closed {
                    gone += 1;
                    gone_seats += waiter.seats;
                }
                !closed
            });
        }
        self.waiting -= gone;
        self.waiting_seats -= gone_seats;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let level = Arc::clone(&self.level);
        level.leave(self);
    }
}

/// A hand of different queues for a flow: cards of a deck, chosen by the digits of the hash.
fn deal(mut flow: u64, queues: usize, hand_size: usize) -> impl Iterator<Item = usize> {
    let mut hand: Vec<usize> = Vec::with_capacity(hand_size);
    for dealt in 0..hand_size.min(queues) {
        let left = (queues - dealt) as u64;
        let mut card = (flow % left) as usize;
        flow /= left;
        // The card's place among those that are left, in the whole deck.
        let mut taken = hand.clone();
        taken.sort_unstable();
        for other in taken {
            if card >= other {
                card += 1;
            }
        }
        hand.push(card);
    }
    hand.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const QUEUING: Option<Queuing> = Some(Queuing {
        queues: 8,
        hand_size: 3,
        length_limit: 4,
    });
    const SOON: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn hands_hold_different_cards_and_cover_the_deck() {
        let mut seen = HashSet::new();
        for flow in 0..2000u64 {
            let hand: Vec<usize> = deal(flow.wrapping_mul(0x9e37_79b9_7f4a_7c15), 16, 4).collect();
            assert_eq!(hand.iter().collect::<HashSet<_>>().len(), 4);
            assert!(hand.iter().all(|card| *card < 16));
            seen.extend(hand);
        }
        assert_eq!(seen.len(), 16);
    }

    #[tokio::test]
    async fn who_finds_no_seat_is_turned_away_where_nobody_queues() {
        let level = Arc::new(Level::new("l", 1, None));
        let seat = level.enter(1, 1, LONG).await.ok().unwrap();
        assert_eq!(
            level.enter(1, 1, LONG).await.err(),
            Some(Rejection::ConcurrencyLimit)
        );
        drop(seat);
        assert!(level.enter(1, 1, LONG).await.is_ok());
    }

    #[tokio::test]
    async fn waiters_get_seats_that_are_left_and_give_up_in_time() {
        let level = Arc::new(Level::new("l", 2, QUEUING));
        let first = level.enter(1, 2, LONG).await.ok().unwrap();
        assert_eq!(
            level.enter(2, 1, SOON).await.err(),
            Some(Rejection::Timeout)
        );
        let other = Arc::clone(&level);
        let waiting = tokio::spawn(async move { other.enter(3, 1, LONG).await.is_ok() });
        while level.figures().waiting == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        assert!(waiting.await.unwrap());
        let figures = level.figures();
        assert_eq!(
            (figures.seats, figures.waiting, figures.executing),
            (0, 0, 0)
        );
        assert!(
            level.enter(1, 9, LONG).await.is_ok(),
            "more than there is runs alone"
        );
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_dropped_waiter_leaves_nothing_behind() {
        let level = Arc::new(Level::new(
            "l",
            1,
            Some(Queuing {
                queues: 1,
                hand_size: 1,
                length_limit: 1,
            }),
        ));
        let seat = level.enter(1, 1, LONG).await.ok().unwrap();
        let other = Arc::clone(&level);
        let waiting = tokio::spawn(async move { other.enter(1, 1, LONG).await.is_ok() });
        while level.figures().waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            level.enter(1, 1, LONG).await.err(),
            Some(Rejection::QueueFull)
        );
        waiting.abort();
        let _ = waiting.await;
        drop(seat);
        let figures = level.figures();
        assert_eq!((figures.seats, figures.waiting), (0, 0));
        assert!(level.enter(1, 1, LONG).await.is_ok());
    }

    #[tokio::test]
    async fn a_light_flow_does_not_wait_behind_a_heavy_one() {
        let queuing = Some(Queuing {
            queues: 64,
            hand_size: 4,
            length_limit: 50,
        });
        let level = Arc::new(Level::new("l", 1, queuing));
        let seat = level.enter(7, 1, LONG).await.ok().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (flow, count) in [(7u64, 20usize), (0x1234_5678_9abc_def0, 1)] {
            for _ in 0..count {
                let (level, order) = (Arc::clone(&level), Arc::clone(&order));
                let before = level.figures().waiting;
                let probe = Arc::clone(&level);
                tasks.push(tokio::spawn(async move {
                    let seat = level.enter(flow, 1, LONG).await;
                    order.lock().unwrap().push(flow);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    drop(seat);
                }));
                while probe.figures().waiting == before {
                    tokio::task::yield_now().await;
                }
            }
        }
        drop(seat);
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock().unwrap();
        let place = order.iter().position(|flow| *flow != 7).unwrap();
        assert!(
            place < 8,
            "the light flow was number {place} of {}",
            order.len()
        );
    }
}
