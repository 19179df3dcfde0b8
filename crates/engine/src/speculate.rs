//! Speculative decoding: who guesses, how many tokens, and whether it pays. Pure, like the scheduler it belongs to.
//!
//! A sequence that speculates computes its last token and a few draft tokens behind it in one step. Every one of these rows
//! is sampled with its own logits and the random numbers of its own position, and a draft token is kept as long as it is
//! the one that was sampled. So the tokens are those of decoding one by one, for greedy and for sampling with a seed: the
//! acceptance of Leviathan et al. 2023 (arXiv:2211.17192), with random numbers that draft and target have in common.
//!
//! Drafts come from the text itself (prompt lookup, Saxena 2023): what followed the last three tokens when they stood there
//! before. Or from a smaller model, see [`crate::draft`].
//!
//! A draft token costs the time by which it lengthens the step, which is measured ([`StepTimes`]), and brings one token as
//! often as the sequence's drafts were right before ([`Sequence::acceptance`]). A step takes the drafts with which it is
//! expected to make the most tokens per second, which may be none.

use crate::{block_pool::BlockPool, scheduler::Limits, sequence::Sequence};

/// Tokens that must have stood together before to say what comes next.
const LOOKUP: usize = 3;
/// Most draft tokens of one step, all sequences together: with more rows a step is not bound by the weights any more.
pub(crate) const MAX_STEP_DRAFTS: usize = 64;
/// How likely a draft token is thought to be right before any was tried.
pub(crate) const FIRST_ACCEPTANCE: f32 = 0.6;
/// Weight of the newest draft token in the acceptance.
const NEWEST: f32 = 0.125;
/// How far every token moves the acceptance towards its first value, so that a drafting model is
/// tried again.
const RECOVERY: f32 = 1.0 / 128.0;

/// Where a sequence's drafts come from.
#[derive(Debug)]
pub(crate) enum Drafter {
    /// This sequence never speculates.
    None,
    Lookup(Lookup),
    Model,
}

/// Where each run of [`LOOKUP`] tokens stood last, and what that says of the next token.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// By hash: the position behind the run that came last; 0: none
    table: Vec<u32>,
    /// The position whose token is expected next; 0: nothing is expected
    expected: usize,
}

impl Lookup {
    /// Reads a text that may grow to `longest` tokens.
    pub fn restart(&mut self, tokens: &[u32], longest: usize) {
        self.table.clear();
        self.table.resize(longest.next_power_of_two(), 0);
        self.expected = 0;
        for end in LOOKUP..=tokens.len() {
            self.expected = self.insert(&tokens[..end]);
        }
    }

    /// Takes in the last of `tokens`, which is new. Says whether it was expected, where one was.
    pub fn push(&mut self, tokens: &[u32]) -> Option<bool> {
        let last = tokens.len() - 1;
        let hit = (self.expected > 0).then(|| tokens[self.expected] == tokens[last]);
        let found = self.insert(tokens);
        // A text that goes on as it did before has more than three tokens in common with it.
        self.expected = if hit == Some(true) { self.expected + 1 } else { found };
        hit
    }

    /// Remembers the run that ends `tokens`, and returns the position behind the one before, 0 if there is none.
    fn insert(&mut self, tokens: &[u32]) -> usize {
        let end = tokens.len();
        let Some(run) = tokens.last_chunk::<LOOKUP>() else { return 0 };
        let hash = run.iter().fold(0u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let slot = (hash >> 32) as usize & (self.table.len() - 1);
        let before = std::mem::replace(&mut self.table[slot], end as u32) as usize;
        if before >= LOOKUP && tokens[before - LOOKUP..before] == *run { before } else { 0 }
    }

    /// Appends the `count` tokens that are expected behind the next `skip` ones. A text that is expected to repeat up to its
    /// own end goes round.
    fn draft(&self, tokens: &[u32], skip: usize, count: usize, drafts: &mut Vec<u32>) {
        let period = tokens.len() - self.expected;
        drafts.extend((skip..skip + count).map(|i| tokens[self.expected + i % period]));
    }
}

impl Sequence {
    /// Whether something can be said of the token after the next.
    fn can_draft(&self) -> bool {
        match &self.drafter {
            Drafter::None => false,
            Drafter::Lookup(lookup) => lookup.expected > 0,
            Drafter::Model => true,
        }
    }

    /// Takes in what was sampled where a draft token stood, `Some(true)` if it was right, or behind all of them: `None`.
    pub fn record_verified(&mut self, right: Option<bool>) {
        if right != Some(true) {
            // A drafting model knows nothing of the token that comes now.
            self.drafted = self.drafted.min(self.tokens.len());
        }
        if let (Drafter::Model, Some(right)) = (&self.drafter, right) {
            self.record_draft(right);
        }
    }

    /// Takes in the newest token.
    pub fn record_token(&mut self) {
        match &mut self.drafter {
            Drafter::None => {}
            Drafter::Lookup(lookup) => {
                if let Some(right) = lookup.push(&self.tokens) {
                    self.record_draft(right);
                }
            }
            Drafter::Model => self.acceptance += RECOVERY * (FIRST_ACCEPTANCE - self.acceptance),
        }
    }

    fn record_draft(&mut self, right: bool) {
        self.acceptance += NEWEST * (f32::from(u8::from(right)) - self.acceptance);
    }

    /// Tokens that `drafts` draft tokens are expected to bring.
    fn expected_gain(&self, drafts: usize) -> f32 {
        let mut likely = 1.0;
        (0..drafts)
            .map(|_| {
                likely *= self.acceptance;
                likely
            })
            .sum()
    }
}

/// Measured times of decode steps, by their tokens.
#[derive(Debug)]
pub struct StepTimes {
    plain: Times,
    with_drafts: Times,
}

#[derive(Debug)]
struct Times {
    /// Seconds, by tokens; 0: not known. Larger steps are not looked at
    seconds: Vec<f32>,
    /// Whether a size has come up
    seen: Vec<bool>,
    recorded: usize,
}

/// Plain steps after which the times with drafts are measured anew, because contexts grow and other work comes and goes.
const FORGET_DRAFTS_AFTER: usize = 512;
/// Steps with drafts after which plain ones are measured anew.
const FORGET_PLAIN_AFTER: usize = 128;

impl StepTimes {
    /// Times of steps of up to `max_tokens` tokens, none of them known. Without any, draft tokens are taken to cost nothing.
    pub fn new(max_tokens: usize) -> Self {
        let times = || Times { seconds: vec![0.0; max_tokens + 1], seen: vec![false; max_tokens + 1], recorded: 0 };
        Self { plain: times(), with_drafts: times() }
    }

    /// Takes in a step of `sequences` decodes and `drafts` draft tokens.
    pub fn record(&mut self, sequences: usize, drafts: usize, seconds: f32) {
        let (this, other, forget_after) = match drafts {
            0 => (&mut self.plain, &mut self.with_drafts, FORGET_DRAFTS_AFTER),
            _ => (&mut self.with_drafts, &mut self.plain, FORGET_PLAIN_AFTER),
        };
        this.record(sequences + drafts, seconds);
        if this.recorded.is_multiple_of(forget_after) {
            other.seconds.fill(0.0);
        }
    }

    /// How much longer a step of `sequences` decodes takes with `drafts` draft tokens. Where that is not known, first the
    /// plain step is measured, then drafts are tried.
    fn ratio(&self, sequences: usize, drafts: usize) -> f32 {
        if drafts == 0 || self.plain.seconds.len() == 1 {
            return 1.0;
        }
        // Where sequences come and go, not every number comes up again.
        let near = (0..=sequences / 8).flat_map(|d| [sequences - d, sequences + d]).find_map(|n| self.plain.known(n));
        let Some(plain) = near else { return f32::INFINITY };
        // A smaller step is a lower bound.
        let known = (1..=drafts).rev().find_map(|drafts| self.with_drafts.known(sequences + drafts));
        known.map_or(1.0, |seconds| (seconds / plain).max(1.0))
    }
}

impl Times {
    fn record(&mut self, tokens: usize, seconds: f32) {
        let (Some(known), Some(seen)) = (self.seconds.get_mut(tokens), self.seen.get_mut(tokens)) else { return };
        self.recorded += 1;
        // The first step of a size loads kernels and records graphs.
        if !std::mem::replace(seen, true) {
            return;
        }
        // Fast downwards, slowly upwards: what disturbs a step makes it longer.
        *known = match *known {
            0.0 => seconds,
            k if seconds < k => (k + seconds) / 2.0,
            k => k + (seconds - k) / 8.0,
        };
    }

    fn known(&self, tokens: usize) -> Option<f32> {
        self.seconds.get(tokens).copied().filter(|&s| s > 0.0)
    }
}

/// Chooses who speculates in the next step and how many tokens: `Sequence::drafts` of those who look them up,
/// `Sequence::wanted` for a drafting model, with blocks for all of them. Nobody speculates while there are prompts to compute:
/// such a step is not bound by the weights.
///
/// A sequence whose next token is still under way is held back for one step when speculating behind it promises more than
/// going on.
pub(crate) fn choose(running: &mut [Sequence], pool: &mut BlockPool, limits: &Limits, times: &StepTimes, under_way: bool) {
    let max_context = limits.max_context;
    let decodes = running.iter().filter(|s| s.may_go_on(max_context)).count();
    // Whoever does not speculate goes on while the others wait for their tokens, who get only every second step then.
    let alternating = under_way && running.iter().any(|s| s.verifying == 0 && !s.can_draft());
    let lost = if alternating { 1.0 } else { 0.0 };
    let (mut rows, mut tokens, mut left) = (0, decodes as f32, limits.max_step_drafts);
    left = left.min(limits.max_step_tokens.saturating_sub(decodes));
    let reserve = running.len();
    for s in running.iter_mut().filter(|s| s.may_go_on(max_context) && s.can_draft()) {
        let still_wanted = s.max_tokens.saturating_sub(s.generated + s.drawn + 1);
        let most = limits.max_drafts.min(left).min(still_wanted).min(max_context.saturating_sub(s.len() + 1));
        let rate = |drafts: usize, gain: f32| (tokens + gain) / times.ratio(decodes, rows + drafts);
        let mut best = (0, 0.0, rate(0, 0.0));
        for drafts in 1..=most {
            let gain = s.expected_gain(drafts) - lost;
            let rate = rate(drafts, gain);
            if gain > 0.0 && rate > best.2 {
                best = (drafts, gain, rate);
            }
        }
        let (mut drafts, gain, _) = best;
        if drafts == 0 {
            continue;
        }
        if s.drawn > 0 {
            s.held = true;
            continue;
        }
        // Not at the expense of others.
        while s.blocks.len() * pool.block_tokens() < s.tokens.len() + drafts && pool.available() > reserve {
            s.blocks.extend(pool.allocate());
        }
        drafts = drafts.min((s.blocks.len() * pool.block_tokens()).saturating_sub(s.tokens.len()));
        match &s.drafter {
            Drafter::None => {}
            Drafter::Lookup(lookup) => lookup.draft(&s.tokens, 0, drafts, &mut s.drafts),
            Drafter::Model => s.wanted = drafts,
        }
        (rows, tokens, left) = (rows + drafts, tokens + gain, left - drafts);
    }
}
