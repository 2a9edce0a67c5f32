//! Facts about every type the API serves.
