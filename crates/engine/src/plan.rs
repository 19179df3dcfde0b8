//! What one step computes, as the flat arrays that go to the device.

use std::ops::Range;

use crate::{block_pool::BlockId, scheduler::Limits, sequence::Rank};

/// Number of a request, in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One step. The buffers are used again for the next one.
#[derive(Debug, Default)]
pub struct Plan {
    pub seqs: Vec<PlannedSequence>,
    /// Tags of requests that lost their blocks to others and wait to be computed anew
    pub preempted: Vec<usize>,
    /// Requests of which nothing was in a step before
    pub started: Vec<RequestId>,
    /// `[tokens]` ids; `−1 − n` stands for the `n`-th token that the step before draws
    pub tokens: Vec<i32>,
    /// `[tokens]`
    pub positions: Vec<i32>,
    /// `[tokens]`: block number · block size + place in the block
    pub slots: Vec<i32>,
    /// `[seqs + 1]`
    pub cu_seqlens: Vec<i32>,
    /// `[seqs]`
    pub context_lens: Vec<i32>,
    /// `[seqs, table_width]`
    pub block_tables: Vec<i32>,
    /// Blocks of the longest sequence in this step
    pub table_width: usize,
    /// Rows of `tokens` whose logits are wanted, ascending
    pub logit_rows: Vec<i32>,
    pub max_query_len: usize,
}

/// One sequence of a step, in the order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedSequence {
    pub id: RequestId,
    pub tag: usize,
    pub(crate) rank: Rank,
    /// Tokens of this step
    pub tokens: usize,
    /// Tokens to be sampled: 1 if the step reaches the sequence's last token, and one more behind each draft token
    pub samples: usize,
    /// Number of the first token to be sampled, counted from the start of the prompt and not changed by preemption or context shift
    pub draw: usize,
}

impl PlannedSequence {
    /// Draft tokens among its tokens: the last ones.
    pub fn drafts(&self) -> usize {
        self.samples.saturating_sub(1)
    }
}

/// The part of one sequence that a step computes.
pub(crate) struct Segment<'a> {
    /// What is known of the text
    pub tokens: &'a [u32],
    /// What may come behind it
    pub drafts: &'a [u32],
    /// The entry for the token behind both
    pub drawn: i32,
    /// Positions to compute
    pub range: Range<usize>,
    /// Positions, within `range`, whose logits are wanted
    pub logits: Range<usize>,
    pub blocks: &'a [BlockId],
    pub block_tokens: usize,
}

impl Plan {
    /// An empty plan with room for every step within `limits`.
    pub(crate) fn for_steps(limits: &Limits, block_tokens: usize) -> Self {
        let Limits { max_seqs, max_step_tokens, .. } = *limits;
        Self {
            seqs: Vec::with_capacity(max_seqs),
            preempted: Vec::with_capacity(max_seqs),
            started: Vec::with_capacity(max_seqs),
            tokens: Vec::with_capacity(max_step_tokens),
            positions: Vec::with_capacity(max_step_tokens),
            slots: Vec::with_capacity(max_step_tokens),
            cu_seqlens: Vec::with_capacity(max_seqs + 1),
            context_lens: Vec::with_capacity(max_seqs),
            block_tables: Vec::with_capacity(max_seqs * limits.max_context.div_ceil(block_tokens)),
            table_width: 0,
            logit_rows: Vec::with_capacity(max_seqs + limits.max_step_drafts),
            max_query_len: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether every sequence has one token and samples the next.
    pub fn is_decode(&self) -> bool {
        self.max_query_len == 1 && self.logit_rows.len() == self.tokens.len()
    }

    /// Tokens that are sampled.
    pub fn samples(&self) -> usize {
        self.logit_rows.len()
    }

    /// For each token that is sampled, in the order of the logits: its sequence, and its number as in
    /// [`PlannedSequence::draw`].
    pub fn sampling(&self) -> impl Iterator<Item = (&PlannedSequence, usize)> {
        self.seqs.iter().flat_map(|s| (s.draw..s.draw + s.samples).map(move |draw| (s, draw)))
    }

    /// Empties the plan; segments pushed from here on have at most `table_width` blocks.
    pub(crate) fn begin(&mut self, table_width: usize) {
        self.table_width = table_width;
        self.max_query_len = 0;
        self.seqs.clear();
        for array in [
            &mut self.tokens,
            &mut self.positions,
            &mut self.slots,
            &mut self.cu_seqlens,
            &mut self.context_lens,
            &mut self.block_tables,
            &mut self.logit_rows,
        ] {
            array.clear();
        }
        self.cu_seqlens.push(0);
    }

    pub(crate) fn push(&mut self, segment: &Segment) {
        let Segment { tokens, drafts, drawn, range, logits, blocks, block_tokens } = segment;
        let first_row = self.tokens.len();
        // One division for each segment: there are hundreds of one token each.
        let (mut block, mut place) = (range.start / block_tokens, range.start % block_tokens);
        for position in range.clone() {
            let known = tokens.get(position).or_else(|| drafts.get(position - tokens.len()));
            if place == *block_tokens {
                (block, place) = (block + 1, 0);
            }
            self.tokens.push(known.map_or(*drawn, |&token| token as i32));
            self.positions.push(position as i32);
            self.slots.push((blocks[block] as usize * block_tokens + place) as i32);
            place += 1;
        }
        self.logit_rows.extend(logits.clone().map(|position| (first_row + position - range.start) as i32));
        self.cu_seqlens.push(self.tokens.len() as i32);
        self.context_lens.push(range.end as i32);
        self.block_tables.extend(blocks[..=block].iter().map(|&b| b as i32));
        self.block_tables.resize(self.context_lens.len() * self.table_width, 0);
        self.max_query_len = self.max_query_len.max(range.len());
    }
}
