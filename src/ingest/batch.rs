//! Messages taken from librdkafka many at a time: the only unsafe code.
//!
//! Every assigned partition's queue is forwarded into one private queue, from which `rd_kafka_consume_batch_queue` takes messages
//! at about half the cost of polling them one by one. librdkafka's calls are safe on any thread; what must hold is that its
//! objects die in the right order: messages, then queue, then client. [`Batch`] and [`BatchQueue`] therefore share the queue,
//! and the queue owns a share of the client.
//!
//! `enable.partition.eof` must stay off: the batch call takes the mark of a partition's end for a record, and after the next pause or
//! rebalance would skip the record that comes to stand there. [`BatchQueue::end`] serves instead.
#![allow(unsafe_code)]

use super::context::Consumer;
use crate::engine::time::Millis;
use rdkafka::consumer::Consumer as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Messages in one batch at most.
const BATCH: usize = 1000;

/// Messages between the one that is worked on and the one whose payload is fetched, and again as many to the one whose head is.
const AHEAD: usize = 3;
/// Bytes of librdkafka's own that are read with every message.
const HEAD: usize = 192;
/// Bytes of a payload that are fetched ahead: more would push out what is needed sooner.
const FETCHED: usize = 512;
/// Bytes of a line of the caches.
const LINE: usize = 64;

/// The private queue.
pub struct BatchQueue(Arc<Queue>);

struct Queue {
    ptr: NonNull<sys::rd_kafka_queue_t>,
    consumer: Arc<Consumer>,
}

// SAFETY: a queue of librdkafka is locked inside; any thread may use it, and destroy it. `consumer` is Send and Sync itself.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `rd_kafka_queue_new`, this is its only owner, and the client still lives: `consumer` is dropped after
        // this body.
        unsafe { sys::rd_kafka_queue_destroy(self.ptr.as_ptr()) }
    }
}

impl BatchQueue {
    /// A queue of this client; `None` if librdkafka has no memory for one.
    pub fn new(consumer: Arc<Consumer>) -> Option<BatchQueue> {
        // SAFETY: the pointer to the client is valid while `consumer` lives.
        let ptr = unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) };
        Some(BatchQueue(Arc::new(Queue { ptr: NonNull::new(ptr)?, consumer })))
    }

    /// Forwards a partition's queue into this one: needed after every assignment of the partition.
    pub fn forward(&self, topic: &str, partition: i32) {
        let Ok(topic) = CString::new(topic) else { return };
        // SAFETY: client and topic name are valid for the call; the reference to the partition's queue that it returns is given back
        // once the forwarding, which keeps a reference of its own, is set.
        unsafe {
            let source = sys::rd_kafka_queue_get_partition(self.0.consumer.client().native_ptr(), topic.as_ptr(), partition);
            if !source.is_null() {
                sys::rd_kafka_queue_forward(source, self.0.ptr.as_ptr());
                sys::rd_kafka_queue_destroy(source);
            }
        }
    }

    /// The end of a partition's log as of the last answer to a fetch; `None` before the first.
    pub fn end(&self, topic: &str, partition: i32) -> Option<i64> {
        let topic = CString::new(topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: client and topic name are valid for the call, which writes to the two numbers and asks no broker.
        let err = unsafe {
            sys::rd_kafka_get_watermark_offsets(self.0.consumer.client().native_ptr(), topic.as_ptr(), partition, &mut low, &mut high)
        };
        (err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
    }

    /// Takes what there is, waiting at most `timeout` for a full batch.
    pub fn take(&self, timeout: Duration) -> Batch {
        let mut room = [std::ptr::null_mut(); BATCH];
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `room` has space for as many pointers as the call is told; it writes that many at most and returns how many.
        let n = unsafe { sys::rd_kafka_consume_batch_queue(self.0.ptr.as_ptr(), timeout, room.as_mut_ptr(), BATCH) };
        let n = usize::try_from(n).unwrap_or(0);
        Batch { messages: room.iter().take(n).copied().filter_map(NonNull::new).collect(), queue: Arc::clone(&self.0) }
    }
}

/// Messages that are destroyed with it.
pub struct Batch {
    messages: Vec<NonNull<sys::rd_kafka_message_t>>,
    queue: Arc<Queue>,
}

// SAFETY: a message that librdkafka has handed out belongs to the application: no other thread reads or writes it, and it may be
// destroyed on any thread.
unsafe impl Send for Batch {}

impl Drop for Batch {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: each pointer was handed out once, sits in one batch alone, and leaves it here; the client still lives: `queue`
            // is dropped after this body.
            unsafe { sys::rd_kafka_message_destroy(message.as_ptr()) }
        }
    }
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages in order. Each was written by other threads: what comes after it is fetched while it is worked on.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        // SAFETY: the pointers are valid until the batch is dropped, and nothing writes to messages.
        let message = |m: &NonNull<sys::rd_kafka_message_t>| Message(unsafe { m.as_ref() });
        self.messages.iter().enumerate().map(move |(at, m)| {
            self.messages.get(at + 2 * AHEAD).into_iter().for_each(|later| prefetch(later.as_ptr().cast(), HEAD));
            self.messages.get(at + AHEAD).map(message).into_iter().for_each(|next| prefetch(next.0.payload.cast(), next.0.len));
            message(m)
        })
    }

    /// Deals the messages out to `ways` batches, in order; those that `route` gives no way are destroyed.
    pub fn split(mut self, ways: usize, mut route: impl FnMut(Message<'_>) -> Option<usize>) -> Vec<Batch> {
        let mut out: Vec<Batch> = (0..ways).map(|_| Batch { messages: Vec::new(), queue: Arc::clone(&self.queue) }).collect();
        let messages = std::mem::take(&mut self.messages);
        let mut dropped = Batch { messages: Vec::new(), queue: Arc::clone(&self.queue) };
        for message in messages {
            // SAFETY: as in `iter`; the pointer moves to exactly one batch.
            let way = route(Message(unsafe { message.as_ref() }));
            way.and_then(|way| out.get_mut(way)).unwrap_or(&mut dropped).messages.push(message);
        }
        out
    }
}

/// Asks the processor for memory that will be read soon, at most [`FETCHED`] bytes of it.
#[cfg(target_arch = "x86_64")]
fn prefetch(from: *const u8, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in (0..len.min(FETCHED)).step_by(LINE) {
        // SAFETY: a hint, which reads nothing: no address is invalid.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_: *const u8, _: usize) {}

/// One message, or an error of its partition (see [`Message::err`]).
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a sys::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// Stands for the topic as long as its partitions stay assigned: cheaper to compare than the name. 0 if there is no topic.
    pub fn topic_key(&self) -> usize {
        self.0.rkt as usize
    }

    /// Empty if there is no topic.
    pub fn topic(&self) -> &'a str {
        if self.0.rkt.is_null() {
            return "";
        }
        // SAFETY: the message holds a reference to its topic, whose name is a C string that lives as long.
        unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.0.rkt)) }.to_str().unwrap_or("")
    }

    pub fn partition(&self) -> i32 {
        self.0.partition
    }

    pub fn offset(&self) -> i64 {
        self.0.offset
    }

    /// Empty for a record without a value.
    pub fn payload(&self) -> &'a [u8] {
        if self.0.payload.is_null() {
            return &[];
        }
        // SAFETY: librdkafka gives `len` bytes at `payload` that live as long as the message.
        unsafe { std::slice::from_raw_parts(self.0.payload.cast(), self.0.len) }
    }

    /// Kafka's timestamp of the record; -1 if it has none.
    pub fn timestamp(&self) -> Millis {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid, and `kind` is written to only during the call.
        unsafe { sys::rd_kafka_message_timestamp(self.0, &mut kind) }
    }

    /// `None` for a record; otherwise what went wrong with its partition.
    pub fn err(&self) -> Option<RDKafkaErrorCode> {
        (self.0.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| self.0.err.into())
    }
}
