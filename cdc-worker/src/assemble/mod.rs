//! Transactions in the order in which they commit, out of a stream in which some are sent while they still run.
//!
//! pgoutput sends a transaction whole when it commits, or, when it outgrows `logical_decoding_work_mem` on the source,
//! piece by piece while it runs, among the pieces of others and whole transactions. The pieces wait until Stream Commit
//! says that the transaction has committed: only then, and at that place, it becomes a transaction like any other.
//! A subtransaction that was rolled back is left out by its number. So the order that comes out of here is the order of
//! the commit records, which is what I1 and I2 count by; and a transaction that runs for hours holds nobody up.
//!
//! [`Assembler`] is a function of values. Where the pieces wait is the caller's: the engine keeps them in a
//! [`crate::spool::Spool`], in memory up to a bound and then on disk. Losing them loses nothing: the slot still has them.
//! A simulation would keep them in a map.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod assembler;

pub(crate) use assembler::{Assembled, Assembler};
