//! The embedded engine: redb with one committer thread.
