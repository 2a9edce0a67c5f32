//! How many seats each level has at a time: its nominal share, less what it lends while it needs
//! little, more while others do. Pure.

/// A level's share in seats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) nominal: usize,
    /// What stays its own, and the most it may have by borrowing.
    pub(super) min: usize,
    pub(super) max: usize,
    /// What it is thought to want.
    pub(super) demand: f64,
}

/// Limits that add up to about `total`: every level gets the same part of its demand, within its
/// bounds.
pub(super) fn limits(total: usize, shares: &[Share]) -> Vec<usize> {
    let bounds = |share: &Share| {
        // What a level uses of its nominal share is not lent away.
        let used = share.demand.min(share.nominal as f64);
        let low = (share.min as f64).max(used);
        (low, (share.max as f64).max(low))
    };
    let target = |share: &Share, part: f64| {
        let (low, high) = bounds(share);
        (part * share.demand.max(share.min as f64).max(1.0)).clamp(low, high)
    };
    let (mut from, mut to) = (0.0f64, 1.0f64);
    let sum = |part: f64| -> f64 { shares.iter().map(|share| target(share, part)).sum() };
    while sum(to) < total as f64 && to < 1e9 {
        to *= 2.0;
    }
    for _ in 0..60 {
        let middle = (from + to) / 2.0;
        if sum(middle) < total as f64 {
            from = middle;
        } else {
            to = middle;
        }
    }
    shares
        .iter()
        .map(|share| (target(share, from).round() as usize).max(1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(nominal: usize, lendable: usize, demand: f64) -> Share {
        Share {
            nominal,
            min: nominal - nominal * lendable / 100,
            max: 600,
            demand,
        }
    }

    #[test]
    fn a_busy_level_borrows_what_idle_ones_lend() {
        let got = limits(
            600,
            &[
                share(300, 90, 600.0),
                share(200, 50, 0.0),
                share(100, 0, 5.0),
            ],
        );
        assert!(got[0] > 300, "{got:?}");
        assert!(got[1] >= 100 && got[2] >= 100, "{got:?}");
        let sum: usize = got.iter().sum();
        assert!(sum.abs_diff(600) <= 3, "{got:?}");
    }

    #[test]
    fn what_is_used_is_not_lent() {
        let got = limits(600, &[share(300, 90, 600.0), share(300, 90, 280.0)]);
        assert!(got[1] >= 280, "{got:?}");
    }
}
