//! One request inside the scheduler: its tokens, its blocks, and how far it has been computed.

use std::{cmp::Ordering, sync::Arc};

use crate::{
    block_pool::{BlockId, Prefix},
    plan::RequestId,
    speculate::{Drafter, FIRST_ACCEPTANCE},
    users::{UserId, UserSlot},
};

/// What the scheduler has to know of a request.
#[derive(Clone, Debug)]
pub struct NewSequence {
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; at least 1
    pub max_tokens: usize,
    /// Tokens that end the generation and are not part of it
    pub stop_tokens: Arc<[u32]>,
    /// Lower values go first; of equal ones, those of the user who has been served least
    pub priority: i32,
    pub user: UserId,
    pub on_context_full: ContextFull,
    /// Whether it may compute draft tokens, where the engine does that
    pub speculates: bool,
    /// Whether it takes tokens from the prefix cache
    pub reuses: bool,
    /// What the caller knows it by; comes back in plans and outcomes
    pub tag: usize,
}

/// What happens when prompt and answer have filled the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextFull {
    /// The generation ends with [`FinishReason::Context`].
    Finish,
    /// The request is refused when prompt and `max_tokens` together do not fit.
    Refuse,
    /// The first `keep` tokens stay, the older half of the others is dropped, the rest is computed anew, and generation goes on.
    Shift { keep: usize },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string
    Stop,
    /// `max_tokens` were generated
    Length,
    /// The context is full
    Context,
    /// The requester gave up
    Cancelled,
    /// The answer could not go on within its grammar
    Constraint,
    /// The device failed
    Failed,
}

impl FinishReason {
    /// The word of the OpenAI API, where it has one.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length | Self::Context => "length",
            Self::Cancelled => "cancelled",
            Self::Constraint | Self::Failed => "error",
        }
    }
}

/// The end of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub reason: FinishReason,
    /// The stop token that ended it
    pub stop_token: Option<u32>,
    pub prompt_tokens: usize,
    /// Prompt tokens that came from the prefix cache
    pub reused_tokens: usize,
    pub generated_tokens: usize,
}

/// Who goes first: lower priority value, then earlier arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    pub priority: i32,
    pub id: RequestId,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.priority, self.id).cmp(&(other.priority, other.id))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A waiting or running request. What every step looks at comes first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Sequence {
    pub rank: Rank,
    /// Prompt and generated tokens, without those that a context shift dropped
    pub tokens: Vec<u32>,
    /// Tokens of `tokens` whose keys and values are in the cache
    pub computed: usize,
    /// Tokens in steps that are under way
    pub in_flight: usize,
    /// Tokens that steps under way draw, so that they are not in `tokens` yet
    pub drawn: usize,
    /// Tokens to compute in the step that is being planned; 0 otherwise
    pub planned: usize,
    /// Draft tokens of a step under way; 0: nothing speculative is under way
    pub verifying: usize,
    pub generated: usize,
    pub max_tokens: usize,
    /// Room for at least `computed` tokens; empty while waiting
    pub blocks: Vec<BlockId>,
    pub tag: usize,
    pub prompt_len: usize,
    /// Where the last of the drawn tokens will be: its number among the tokens that step draws
    pub drawn_row: usize,
    /// How many of its tokens were computed at any time: what is computed anew after a preemption is not charged again
    pub charged: usize,
    pub stop_tokens: Arc<[u32]>,
    pub user: UserSlot,
    /// What may come behind `tokens`, for the step that is being planned or, if `verifying`, for the one under way
    pub drafts: Vec<u32>,
    /// Set while a commit goes on and it has left the running ones
    pub leaving: Option<Leaving>,
    /// Left out of the next step, so that its token is known and it can speculate in the one behind it
    pub held: bool,
    pub reuses: bool,
    /// Part of the last draft tokens that were right, late ones weighing more
    pub acceptance: f32,
    pub drafter: Drafter,
    /// Draft tokens that a drafting model is to make for the next step
    pub wanted: usize,
    /// First tokens of `tokens` and `drafts` whose keys and values a drafting model has
    pub drafted: usize,
    /// What text the whole blocks among the computed tokens are
    pub prefix: Prefix,
    /// Prompt tokens found in the cache at the first admission; `None` before it
    pub reused: Option<usize>,
    pub on_context_full: ContextFull,
}

/// Where a sequence goes that does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    Finished,
    /// Back to the queue, to be computed anew
    Waiting,
}

impl Sequence {
    pub fn new(id: RequestId, user: UserSlot, new: NewSequence) -> Self {
        Self {
            rank: Rank { priority: new.priority, id },
            prompt_len: new.prompt.len(),
            tokens: new.prompt,
            computed: 0,
            charged: 0,
            blocks: Vec::new(),
            prefix: Prefix::EMPTY,
            planned: 0,
            in_flight: 0,
            drawn: 0,
            drawn_row: 0,
            generated: 0,
            reused: None,
            max_tokens: new.max_tokens,
            stop_tokens: new.stop_tokens,
            on_context_full: new.on_context_full,
            user,
            reuses: new.reuses,
            tag: new.tag,
            drafter: Drafter::None,
            acceptance: FIRST_ACCEPTANCE,
            drafts: Vec::new(),
            verifying: 0,
            wanted: 0,
            drafted: 0,
            held: false,
            leaving: None,
        }
    }

    pub fn id(&self) -> RequestId {
        self.rank.id
    }

    /// Whether the next step may compute something of it.
    pub fn is_free(&self, max_context: usize) -> bool {
        self.planned == 0 && !self.held && self.verifying == 0 && !self.is_ending(max_context)
    }

    /// Tokens of the text, those included that steps under way draw.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.drawn
    }

    /// The first token that is neither computed nor under way.
    pub fn next(&self) -> usize {
        self.computed + self.in_flight
    }

    /// Tokens to compute next; at least 1.
    pub fn remaining(&self) -> usize {
        self.len() - self.next()
    }

    /// Whether the next step can compute one token of it and the drafts behind that.
    pub fn may_go_on(&self, max_context: usize) -> bool {
        self.verifying == 0 && !self.is_ending(max_context) && self.remaining() == 1
    }

    /// Whether the tokens under way end it, whichever they are.
    pub fn is_ending(&self, max_context: usize) -> bool {
        self.drawn > 0 && (self.generated + self.drawn >= self.max_tokens || self.len() >= max_context)
    }

    pub fn finished(&self, reason: FinishReason, stop_token: Option<u32>) -> Finished {
        Finished {
            reason,
            stop_token,
            prompt_tokens: self.prompt_len,
            reused_tokens: self.reused.unwrap_or(0),
            generated_tokens: self.generated,
        }
    }

    /// Drops the older half of what follows the first `keep` tokens.
    pub fn shift(&mut self, keep: usize) {
        // What is computed anew for a longer answer is a cost of the request like any other.
        self.charged = 0;
        let keep = keep.min(self.tokens.len());
        let drop = (self.tokens.len() - keep).div_ceil(2);
        self.tokens.drain(keep..keep + drop);
    }
}
