//! The running stream: a thread that reads the socket, answers the server, and hands messages over in batches.
//!
//! The thread is the session's only reader and writer, so the server hears from us however long the engine is busy with a
//! commit: a slow flush must not look like a dead client to `wal_sender_timeout`. What the engine has no time for stays in
//! the socket: the queue is bounded, and TCP holds the server back.
//!
//! A walsender with much to send writes message by message. Whoever reads as it writes is woken for each, and wakes the
//! engine for each: measured, half of the engine's time. So in a stream that flows the thread sleeps a moment between two
//! reads, which is why it is a thread and no task.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use iceberg_writer::Lsn;
use postgres_protocol::message::backend::{COPY_DATA_TAG, COPY_DONE_TAG, ERROR_RESPONSE_TAG, Message};
use postgres_protocol::message::frontend;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::Result;
use crate::decode::message::POSTGRES_EPOCH_US;

use super::super::wire::{Failure, Frame, Wire};
use super::refused;

/// How often the slot hears from us. Well below the smallest sensible `wal_sender_timeout` (the default is 60 s).
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// After so long a silence the server is asked for an answer.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(30);
/// After so long a silence the connection counts as broken. A server that decodes a large transaction of tables that are
/// not published can be busy for a while without looking at its socket.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// A read that brings fewer messages is too small to be worth the wake-up, if more are on their way.
const FEW_MESSAGES: usize = 64;
/// More are on their way when the last ones came less than this before.
const FLOW: Duration = Duration::from_millis(1);
/// How long they are given to come: less than it takes a walsender to fill the socket (some 250 messages).
const PAUSE: Duration = Duration::from_micros(250);

/// Messages of a batch, at most.
const BATCH_MESSAGES: usize = 1024;
/// Bytes of a batch after which it is handed over.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that may wait for the engine: enough to overlap the two, little enough to bound memory.
const BATCHES: usize = 8;

/// What the walsender sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WalMessage {
    /// A message of the output plugin.
    Data(Bytes),
    /// Everything that committed before `end` has been sent.
    KeepAlive {
        /// End of the WAL that was sent.
        end: Lsn,
        /// The server's clock, microseconds since 1970.
        clock_us: i64,
    },
}

/// The engine's end of the stream. Dropped, it ends the session.
pub(crate) struct WalStream {
    batches: mpsc::Receiver<Result<Vec<WalMessage>>>,
    acknowledged: watch::Sender<Lsn>,
}

impl WalStream {
    pub(super) fn begin(wire: Wire, acknowledged: Lsn) -> Result<Self, Failure> {
        let (to_engine, batches) = mpsc::channel(BATCHES);
        let (acknowledged, from_engine) = watch::channel(acknowledged);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let wire = wire.detach()?;
        std::thread::Builder::new().name("lake wal".to_owned()).spawn(move || {
            runtime.block_on(async {
                let pump = Pump::new(wire.attach()?, to_engine, from_engine);
                pump.run().await;
                std::io::Result::Ok(())
            })
        })?;
        Ok(Self { batches, acknowledged })
    }

    /// The next messages, at least one. `None`: the stream has ended. Dropped halfway, it loses nothing.
    ///
    /// # Errors
    /// [`crate::ErrorKind::SourceUnreachable`] when the connection broke.
    pub(crate) async fn recv(&mut self) -> Result<Option<Vec<WalMessage>>> {
        self.batches.recv().await.transpose()
    }

    /// Ends the session, and waits for nothing.
    pub(crate) fn end(&mut self) {
        self.batches.close();
    }

    /// Tells the slot that everything which committed before this is kept elsewhere. It is never told less than before: the
    /// server would take the slot's position back, but not the beginning of the WAL that it keeps for it.
    pub(crate) fn acknowledge(&self, lsn: Lsn) {
        self.acknowledged.send_if_modified(|before| {
            let further = lsn > *before;
            *before = lsn.max(*before);
            further
        });
    }

    /// What the slot has been told.
    pub(crate) fn acknowledged(&self) -> Lsn {
        *self.acknowledged.borrow()
    }
}

/// The thread between socket and engine.
struct Pump {
    wire: Wire,
    engine: mpsc::Sender<Result<Vec<WalMessage>>>,
    acknowledged: watch::Receiver<Lsn>,
    next_status: Instant,
    heard: Instant,
}

impl Pump {
    fn new(wire: Wire, engine: mpsc::Sender<Result<Vec<WalMessage>>>, acknowledged: watch::Receiver<Lsn>) -> Self {
        let now = Instant::now();
        Self { wire, engine, acknowledged, next_status: now, heard: now }
    }

    async fn run(mut self) {
        if let Err(failure) = self.pump().await {
            let error = refused(failure, "read the replication stream");
            // Without an engine nobody wants to know.
            let _ = self.engine.send(Err(error)).await;
        }
        let mut goodbye = BytesMut::new();
        frontend::copy_done(&mut goodbye);
        frontend::terminate(&mut goodbye);
        // The server notices the closed socket all the same.
        let _ = tokio::time::timeout(STATUS_INTERVAL, self.wire.send(goodbye)).await;
    }

    /// Ends well when the engine has let go, or the server has said goodbye.
    async fn pump(&mut self) -> Result<(), Failure> {
        let mut handed_over = Instant::now();
        loop {
            let (batch, ended) = self.gather().await?;
            if !batch.is_empty() {
                let few = batch.len() < FEW_MESSAGES;
                if !self.hand_over(batch).await? {
                    return Ok(());
                }
                let now = Instant::now();
                if few && now - handed_over < FLOW {
                    // Nothing else runs on this thread.
                    std::thread::sleep(PAUSE);
                }
                handed_over = now;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.engine.closed() => return Ok(()),
                // Its sender goes with the engine's end.
                changed = self.acknowledged.changed() => match changed {
                    Ok(()) => self.status().await?,
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep_until(self.next_status) => self.status().await?,
                filled = self.wire.fill() => {
                    if !filled? {
                        return Err(Failure::protocol("the server closed the connection"));
                    }
                    self.heard = Instant::now();
                }
            }
        }
    }

    /// The messages that have been read already, and whether the server has ended the stream.
    async fn gather(&mut self) -> Result<(Vec<WalMessage>, bool), Failure> {
        let (mut batch, mut bytes, mut asked) = (Vec::new(), 0, false);
        let mut ended = false;
        while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let Some(frame) = self.wire.take()? else { break };
            match frame.tag {
                COPY_DATA_TAG => {
                    bytes += frame.body.len();
                    let (message, reply) = copy_data(frame.body)?;
                    asked |= reply;
                    batch.push(message);
                }
                COPY_DONE_TAG => {
                    ended = true;
                    break;
                }
                ERROR_RESPONSE_TAG => return Err(refusal(&frame)),
                // Notices and parameters.
                _ => {}
            }
        }
        if asked {
            self.status().await?;
        }
        Ok((batch, ended))
    }

    /// Waits for room. False: the engine has let go.
    async fn hand_over(&mut self, batch: Vec<WalMessage>) -> Result<bool, Failure> {
        let engine = self.engine.clone();
        let room = engine.reserve();
        tokio::pin!(room);
        loop {
            tokio::select! {
                biased;
                room = &mut room => {
                    let Ok(room) = room else { return Ok(false) };
                    room.send(Ok(batch));
                    return Ok(true);
                }
                () = tokio::time::sleep_until(self.next_status) => {
                    // Unread messages wait in the socket: that is our silence, not the server's.
                    self.heard = Instant::now();
                    self.status().await?;
                }
            }
        }
    }

    /// Sends a standby status update ("Streaming Replication Protocol" in the PostgreSQL documentation).
    async fn status(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let silence = now.duration_since(self.heard);
        if silence > LONGEST_SILENCE {
            return Err(Failure::protocol("the server has fallen silent"));
        }
        let kept = self.acknowledged.borrow_and_update().as_u64();
        let mut update = BytesMut::with_capacity(64);
        update.put_u8(b'r');
        // Written, flushed and applied are one: what is not in the lake is not kept.
        for _ in 0..3 {
            update.put_u64(kept);
        }
        update.put_i64(0);
        update.put_u8(u8::from(silence > SILENCE_BEFORE_ASKING));
        let mut message = BytesMut::new();
        frontend::CopyData::new(update.freeze())?.write(&mut message);
        self.wire.send(message).await?;
        self.next_status = now + STATUS_INTERVAL;
        Ok(())
    }
}

fn refusal(frame: &Frame) -> Failure {
    match Message::parse(&mut BytesMut::from(&*frame.whole)) {
        Ok(Some(Message::ErrorResponse(body))) => Failure::server(&body),
        Ok(_) => Failure::protocol("an error that is none"),
        Err(error) => error.into(),
    }
}

/// What a CopyData message carries, and whether an answer is wanted.
fn copy_data(mut body: Bytes) -> Result<(WalMessage, bool), Failure> {
    let malformed = || Failure::protocol("a malformed message of the walsender");
    let tag = body.try_get_u8().map_err(|_| malformed())?;
    match tag {
        b'w' => {
            // Start and end of the WAL, and the clock: the plugin's message has its own.
            if body.len() < 24 {
                return Err(malformed());
            }
            body.advance(24);
            Ok((WalMessage::Data(body), false))
        }
        b'k' => {
            let end = body.try_get_u64().map_err(|_| malformed())?;
            let clock_us = body.try_get_i64().map_err(|_| malformed())?.saturating_add(POSTGRES_EPOCH_US);
            let asked = body.try_get_u8().map_err(|_| malformed())? != 0;
            Ok((WalMessage::KeepAlive { end: Lsn::from_u64(end), clock_us }, asked))
        }
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_is_never_told_less_than_before() {
        let (_batches, from_server) = mpsc::channel(1);
        let (acknowledged, mut told) = watch::channel(Lsn::from_u64(5));
        let stream = WalStream { batches: from_server, acknowledged };
        stream.acknowledge(Lsn::from_u64(4));
        assert_eq!((stream.acknowledged(), told.has_changed().unwrap()), (Lsn::from_u64(5), false));
        stream.acknowledge(Lsn::from_u64(6));
        assert_eq!((*told.borrow_and_update(), stream.acknowledged()), (Lsn::from_u64(6), Lsn::from_u64(6)));
    }

    #[test]
    fn messages_of_the_walsender_are_read_and_every_cut_is_an_error() {
        let mut keep_alive = vec![b'k'];
        keep_alive.extend_from_slice(&7u64.to_be_bytes());
        keep_alive.extend_from_slice(&1i64.to_be_bytes());
        keep_alive.push(1);
        let expected = WalMessage::KeepAlive { end: Lsn::from_u64(7), clock_us: POSTGRES_EPOCH_US + 1 };
        assert_eq!(copy_data(keep_alive.clone().into()).unwrap(), (expected, true));
        for end in 0..keep_alive.len() {
            assert!(copy_data(Bytes::copy_from_slice(&keep_alive[..end])).is_err(), "cut at {end}");
        }
        let mut data = vec![b'w'];
        data.extend_from_slice(&[0; 24]);
        assert!(copy_data(Bytes::copy_from_slice(&data[..20])).is_err());
        data.extend_from_slice(b"row");
        assert_eq!(copy_data(data.into()).unwrap(), (WalMessage::Data(Bytes::from_static(b"row")), false));
    }
}
