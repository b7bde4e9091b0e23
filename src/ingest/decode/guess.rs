//! Guessing the next key of a record.
//!
//! Producers write their keys in the same order every time. After each key that the decoder knows, the few byte sequences that
//! followed it lately (`,"ts":` with the producer's own spacing) are remembered; if one of them comes next, byte for byte, its
//! key is known without scanning it. From the same place in the grammar the same bytes mean the same, so a hit can never be wrong.

/// A top-level field of the canonical format, or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Slot {
    Event,
    Ts,
    Id,
    TenantId,
    UserId,
    Experiment,
    Bucket,
    Attributes,
    LatencyMs,
    Error,
    Workflow,
    WorkflowId,
    Flag,
    Metric,
    Value,
    Covariate,
    Phase,
    Weights,
    Text,
    Author,
    Other,
}

/// Number of [`Slot`]s.
pub const SLOTS: usize = Slot::Other as usize + 1;

impl Slot {
    pub fn of(key: &str) -> Slot {
        match key {
            "event" => Slot::Event,
            "ts" => Slot::Ts,
            "id" => Slot::Id,
            "tenant_id" => Slot::TenantId,
            "user_id" => Slot::UserId,
            "experiment" => Slot::Experiment,
            "bucket" => Slot::Bucket,
            "attributes" => Slot::Attributes,
            "latency_ms" => Slot::LatencyMs,
            "error" => Slot::Error,
            "workflow" => Slot::Workflow,
            "workflow_id" => Slot::WorkflowId,
            "flag" => Slot::Flag,
            "metric" => Slot::Metric,
            "value" => Slot::Value,
            "covariate" => Slot::Covariate,
            "phase" => Slot::Phase,
            "weights" => Slot::Weights,
            "text" => Slot::Text,
            "author" => Slot::Author,
            _ => Slot::Other,
        }
    }
}

/// Longest sequence remembered, so that one comparison of 128 bits verifies it.
const WIDTH: usize = 16;
/// Sequences remembered after each key.
const WAYS: usize = 4;

#[derive(Clone, Copy)]
struct Guess {
    bits: u128,
    mask: u128,
    len: u8,
    slot: Slot,
}

/// Keys guessed and keys scanned, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub hits: u64,
    pub misses: u64,
}

/// See the module. The index after the last slot stands for the beginning of a record.
pub struct Guesses {
    after: [[Guess; WAYS]; SLOTS + 1],
    victim: [u8; SLOTS + 1],
    pub stats: Stats,
}

/// Where a record begins.
pub const START: usize = SLOTS;

impl Guesses {
    pub fn new() -> Guesses {
        // An empty guess demands a first byte of 0, which no valid text has.
        let none = Guess { bits: 0, mask: 0xFF, len: 0, slot: Slot::Other };
        Guesses { after: [[none; WAYS]; SLOTS + 1], victim: [0; SLOTS + 1], stats: Stats::default() }
    }

    /// The slot and length of the remembered sequence that `rest` begins with.
    #[inline]
    pub fn find(&mut self, place: usize, rest: &[u8]) -> Option<(Slot, usize)> {
        let head = match rest.first_chunk::<WIDTH>() {
            Some(chunk) => u128::from_le_bytes(*chunk),
            None => padded(rest),
        };
        let hit = self.after[place].iter().find(|g| head & g.mask == g.bits && g.len > 0)?;
        self.stats.hits += 1;
        Some((hit.slot, usize::from(hit.len)))
    }

    /// Remembers that `sequence` came at `place` and led to the value of `slot`, in the stead of the one remembered longest.
    pub fn learn(&mut self, place: usize, sequence: &[u8], slot: Slot) {
        self.stats.misses += 1;
        if sequence.is_empty() || sequence.len() > WIDTH {
            return;
        }
        let mask = u128::MAX >> (8 * (WIDTH - sequence.len()));
        let way = usize::from(self.victim[place]);
        self.after[place][way] = Guess { bits: padded(sequence), mask, len: sequence.len() as u8, slot };
        self.victim[place] = ((way + 1) % WAYS) as u8;
    }
}

/// The first 16 bytes, zeros behind the end.
fn padded(bytes: &[u8]) -> u128 {
    let mut chunk = [0; WIDTH];
    let n = bytes.len().min(WIDTH);
    chunk[..n].copy_from_slice(&bytes[..n]);
    u128::from_le_bytes(chunk)
}
