//! The paged block allocator with its prefix cache. Pure: it hands out block numbers and never sees the device.
//!
//! A block holds the keys and values of `block_tokens` consecutive tokens. Keys and values depend on all tokens before
//! them, so a cached block is identified by what stands before it ([`Prefix`]) and its own token ids. Ids are compared, so
//! a hash collision costs a cache entry and never gives a wrong answer.
//!
//! Blocks nobody uses stay in one list: blank ones in front, cached ones behind in the order of their last use. Allocation
//! takes the front and forgets what was cached there.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Number of a block in every layer's pool.
pub type BlockId = u32;

/// End of the list of unused blocks.
const NIL: u32 = u32::MAX;

/// Most partly filled blocks that are remembered behind one prefix; searching them is linear.
const MAX_TAILS: usize = 64;

/// The identity of one exact sequence of tokens, in whole blocks, from the start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Never used twice
    id: u64,
    hash: u64,
}

impl Prefix {
    /// No tokens at all.
    pub const EMPTY: Self = Self { id: 0, hash: 0 };

    /// The same for the same text, also in another process of the same program; another one for nearly every other text.
    pub const fn hash(self) -> u64 {
        self.hash
    }
}

/// A change of what can be reused, for those who send requests where their beginnings are. Only whole blocks are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// A block holds `tokens` behind the text whose hash is `parent` (`None`: at the start of a text), and so completes the
    /// text whose hash is `hash`; hashes are [`Prefix::hash`].
    Stored { hash: u64, parent: Option<u64>, tokens: Vec<u32> },
    /// The last block of the text with this hash is gone, and what stands behind it will not be found any more.
    Removed { hash: u64 },
    /// All blocks are gone.
    Cleared,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Token ids of cached blocks, `block_tokens` for each block.
    tokens: Vec<u32>,
    full: HashMap<(Prefix, u64), BlockId>,
    tails: HashMap<Prefix, Vec<BlockId>>,
    caching: bool,
    last_prefix: u64,
    /// `None`: nobody wants to know
    log: Option<Log>,
    first_unused: u32,
    last_unused: u32,
    unused: usize,
    /// Of the unused ones, those that are cached
    cached: usize,
}

#[derive(Clone, Debug)]
struct Block {
    users: u32,
    content: Content,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Not in the cache.
    Blank,
    /// Whole, below `parent`; with this block the text so far is `prefix`.
    Full { parent: Prefix, hash: u64, prefix: Prefix },
    /// The first `len` tokens are filled. Only unused blocks are tails: the next user writes behind them.
    Tail { parent: Prefix, len: usize },
}

impl BlockPool {
    /// A pool of `blocks` blocks of `block_tokens` tokens; without `caching` nothing is ever found again.
    pub fn new(blocks: u32, block_tokens: usize, caching: bool) -> Self {
        let count = blocks as usize;
        let mut pool = Self {
            block_tokens,
            blocks: vec![Block { users: 0, content: Content::Blank, previous: NIL, next: NIL }; count],
            tokens: vec![0; count * block_tokens],
            // Twice the entries, so that the table never has to grow.
            full: HashMap::with_capacity(2 * count),
            tails: HashMap::new(),
            caching,
            last_prefix: 0,
            log: None,
            first_unused: NIL,
            last_unused: NIL,
            unused: 0,
            cached: 0,
        };
        (0..blocks).for_each(|block| pool.push_back(block));
        pool
    }

    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that can be allocated now; cached ones count, because they can be evicted.
    pub fn available(&self) -> usize {
        self.unused
    }

    /// Blocks that are unused and cached.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// A block for one user with undefined contents: a blank one, or the cached one that was used longest ago.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.first_unused;
        if block == NIL {
            return None;
        }
        self.forget(block);
        self.unlink(block);
        self.blocks[block as usize].users = 1;
        Some(block)
    }

    /// Ends one use of a block. A sequence gives its last block back first, so that it is evicted before those it depends on.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.users > 0, "block {block} released twice");
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            if entry.content == Content::Blank { self.push_front(block) } else { self.push_back(block) }
        }
    }

    /// Appends the longest run of cached whole blocks that `tokens` starts with to `found`, each with one more user, and
    /// returns what text they are. At least one token is always left over.
    pub fn acquire(&mut self, tokens: &[u32], found: &mut Vec<BlockId>) -> Prefix {
        let mut prefix = Prefix::EMPTY;
        let whole = tokens.len().saturating_sub(1) / self.block_tokens;
        for chunk in tokens.chunks_exact(self.block_tokens).take(whole) {
            let Some(block) = self.find(prefix, chunk) else { break };
            let Content::Full { prefix: next, .. } = self.blocks[block as usize].content else { break };
            prefix = next;
            if self.blocks[block as usize].users == 0 {
                self.unlink(block);
            }
            self.blocks[block as usize].users += 1;
            found.push(block);
        }
        prefix
    }

    /// Takes the partly filled block behind `parent` that saves the most of `rest` out of the cache, for one user, with
    /// the number of its tokens that can be kept: all, or one less than `rest` has.
    pub fn take_tail(&mut self, parent: Prefix, rest: &[u32]) -> Option<(BlockId, usize)> {
        let usable = |block: &BlockId| {
            let tail = self.tokens_of(*block);
            let common = tail.len().min(rest.len());
            (tail[..common] == rest[..common]).then(|| (common.min(rest.len().saturating_sub(1)), *block))
        };
        let (kept, block) = self.tails.get(&parent)?.iter().filter_map(usable).max_by_key(|(kept, _)| *kept)?;
        if kept == 0 {
            return None;
        }
        self.forget(block);
        self.unlink(block);
        self.blocks[block as usize].users = 1;
        Some((block, kept))
    }

    /// Puts a used block that is now full of `tokens` into the cache, and returns what text it completes.
    pub fn store(&mut self, block: BlockId, parent: Prefix, tokens: &[u32]) -> Prefix {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        if !self.caching {
            return Prefix::EMPTY;
        }
        let hash = hash(tokens);
        match self.full.entry((parent, hash)) {
            Entry::Occupied(entry) => {
                let other = *entry.get();
                match self.blocks[other as usize].content {
                    Content::Full { prefix, .. } if self.tokens_of(other) == tokens => prefix,
                    // Another text with the same hash: this one goes without a cache entry.
                    _ => self.new_prefix(parent, tokens),
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(block);
                let prefix = self.new_prefix(parent, tokens);
                if let Some(log) = &mut self.log {
                    log.stored(prefix, parent, tokens);
                }
                self.blocks[block as usize].content = Content::Full { parent, hash, prefix };
                self.tokens[block as usize * self.block_tokens..][..tokens.len()].copy_from_slice(tokens);
                prefix
            }
        }
    }

    /// Ends the only use of a block whose first tokens are `tokens`, and caches them.
    pub fn release_tail(&mut self, block: BlockId, parent: Prefix, tokens: &[u32]) {
        debug_assert!(tokens.len() < self.block_tokens && self.blocks[block as usize].users == 1);
        let known = |b: &BlockId| self.tokens_of(*b).starts_with(tokens);
        if self.caching && !tokens.is_empty() && !self.tails.get(&parent).is_some_and(|tails| tails.iter().any(known)) {
            let tails = self.tails.entry(parent).or_default();
            let oldest = (tails.len() == MAX_TAILS).then(|| tails[0]);
            tails.push(block);
            if let Some(oldest) = oldest {
                self.forget(oldest);
                self.unlink(oldest);
                self.push_front(oldest);
            }
            self.blocks[block as usize].content = Content::Tail { parent, len: tokens.len() };
            self.tokens[block as usize * self.block_tokens..][..tokens.len()].copy_from_slice(tokens);
        }
        self.release(block);
    }

    /// Empties the cache. Blocks in use stay in use.
    pub fn clear_cache(&mut self) {
        let log = self.log.take();
        for block in 0..self.blocks.len() as u32 {
            self.forget(block);
        }
        self.log = log;
        if let Some(log) = &mut self.log {
            log.events.push(KvEvent::Cleared);
            log.latest.clear();
        }
    }

    /// What the cache holds, as events that would bring it there.
    pub fn contents(&self) -> Vec<KvEvent> {
        let mut log = Log::default();
        self.write_contents(&mut log);
        log.events
    }

    /// Appends what has happened since the last call to `events`. The first call only begins to record.
    pub fn take_events(&mut self, events: &mut Vec<KvEvent>) {
        if let Some(log) = &mut self.log {
            events.append(&mut log.events);
            return;
        }
        let mut log = Log::default();
        self.write_contents(&mut log);
        log.events.clear();
        self.log = Some(log);
    }

    fn write_contents(&self, log: &mut Log) {
        let full = (0u32..).zip(&self.blocks).filter_map(|(id, block)| match block.content {
            Content::Full { parent, prefix, .. } => Some((prefix, parent, id)),
            _ => None,
        });
        let mut full: Vec<_> = full.collect();
        // Whatever a text goes on from came before it.
        full.sort_unstable();
        full.into_iter().for_each(|(prefix, parent, id)| log.stored(prefix, parent, self.tokens_of(id)));
    }

    /// Users of a block.
    pub fn users(&self, block: BlockId) -> u32 {
        self.blocks.get(block as usize).map_or(0, |b| b.users)
    }

    /// Checks every invariant.
    ///
    /// # Errors
    /// What is wrong, for a test to print.
    pub fn check_integrity(&self) -> Result<(), String> {
        let ensure = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        let (mut seen, mut block, mut previous) = (0, self.first_unused, NIL);
        while block != NIL {
            let entry = self.blocks.get(block as usize).ok_or(format!("block {block} does not exist"))?;
            ensure(entry.users == 0, format!("block {block} is listed as unused and has {} users", entry.users))?;
            ensure(entry.previous == previous, format!("block {block} points back to {}, not {previous}", entry.previous))?;
            seen += 1;
            ensure(seen <= self.blocks.len(), "the list of unused blocks is a circle".into())?;
            (previous, block) = (block, entry.next);
        }
        ensure(self.last_unused == previous, "the list of unused blocks ends elsewhere".into())?;
        let unused = self.blocks.iter().filter(|b| b.users == 0).count();
        ensure(seen == unused && self.unused == unused, format!("{unused} unused blocks, {seen} listed, {} counted", self.unused))?;
        let cached = self.blocks.iter().filter(|b| b.users == 0 && b.content != Content::Blank).count();
        ensure(cached == self.cached, format!("{cached} unused blocks cached, {} counted", self.cached))?;
        let (mut full, mut tails) = (0, 0);
        for (id, block) in (0u32..).zip(&self.blocks) {
            match block.content {
                Content::Blank => {}
                Content::Full { parent, hash: stored, prefix } => {
                    full += 1;
                    ensure(self.full.get(&(parent, stored)) == Some(&id), format!("block {id} is not in the index"))?;
                    ensure(hash(self.tokens_of(id)) == stored, format!("block {id} has another hash"))?;
                    ensure(parent < prefix, format!("block {id} is older than its parent"))?;
                }
                Content::Tail { parent, len } => {
                    tails += 1;
                    ensure(block.users == 0, format!("tail {id} is in use"))?;
                    ensure(len > 0 && len < self.block_tokens, format!("tail {id} has {len} tokens"))?;
                    let listed = self.tails.get(&parent).map_or(0, |tails| tails.iter().filter(|&&t| t == id).count());
                    ensure(listed == 1, format!("tail {id} is listed {listed} times"))?;
                }
            }
        }
        ensure(full == self.full.len(), format!("{full} whole blocks cached, {} in the index", self.full.len()))?;
        let listed = self.tails.values().map(Vec::len).sum::<usize>();
        ensure(tails == listed && self.tails.values().all(|t| !t.is_empty()), format!("{tails} tails cached, {listed} listed"))
    }

    fn find(&self, parent: Prefix, tokens: &[u32]) -> Option<BlockId> {
        self.full.get(&(parent, hash(tokens))).copied().filter(|&block| self.tokens_of(block) == tokens)
    }

    /// The token ids cached for a block.
    fn tokens_of(&self, block: BlockId) -> &[u32] {
        let len = match self.blocks[block as usize].content {
            Content::Blank => 0,
            Content::Full { .. } => self.block_tokens,
            Content::Tail { len, .. } => len,
        };
        &self.tokens[block as usize * self.block_tokens..][..len]
    }

    fn new_prefix(&mut self, parent: Prefix, tokens: &[u32]) -> Prefix {
        self.last_prefix += 1;
        let mut hasher = DefaultHasher::new();
        (parent.hash, tokens).hash(&mut hasher);
        Prefix { id: self.last_prefix, hash: hasher.finish() }
    }

    /// Takes a block out of the cache.
    fn forget(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        let content = std::mem::replace(&mut entry.content, Content::Blank);
        self.cached -= usize::from(entry.users == 0 && content != Content::Blank);
        match content {
            Content::Blank => {}
            Content::Full { parent, hash, prefix } => {
                self.full.remove(&(parent, hash));
                if let Some(log) = &mut self.log {
                    log.removed(prefix);
                }
            }
            Content::Tail { parent, .. } => {
                if let Entry::Occupied(mut tails) = self.tails.entry(parent) {
                    tails.get_mut().retain(|&t| t != block);
                    if tails.get().is_empty() {
                        tails.remove();
                    }
                }
            }
        }
    }

    fn unlink(&mut self, block: BlockId) {
        let Block { previous, next, content, .. } = self.blocks[block as usize];
        match self.blocks.get_mut(previous as usize) {
            Some(b) => b.next = next,
            None => self.first_unused = next,
        }
        match self.blocks.get_mut(next as usize) {
            Some(b) => b.previous = previous,
            None => self.last_unused = previous,
        }
        self.unused -= 1;
        self.cached -= usize::from(content != Content::Blank);
    }

    fn push_front(&mut self, block: BlockId) {
        let next = std::mem::replace(&mut self.first_unused, block);
        self.link(block, NIL, next);
        match self.blocks.get_mut(next as usize) {
            Some(b) => b.previous = block,
            None => self.last_unused = block,
        }
    }

    fn push_back(&mut self, block: BlockId) {
        let previous = std::mem::replace(&mut self.last_unused, block);
        self.link(block, previous, NIL);
        match self.blocks.get_mut(previous as usize) {
            Some(b) => b.next = block,
            None => self.first_unused = block,
        }
    }

    fn link(&mut self, block: BlockId, previous: u32, next: u32) {
        let entry = &mut self.blocks[block as usize];
        (entry.previous, entry.next) = (previous, next);
        self.unused += 1;
        self.cached += usize::from(entry.content != Content::Blank);
    }
}

/// Changes of the cache, for [`BlockPool::take_events`].
#[derive(Debug, Default)]
struct Log {
    events: Vec<KvEvent>,
    /// The latest copy of a text by [`Prefix::hash`]. It can be stored again while an earlier copy, whose beginning was forgotten,
    /// is there: that one is found no more, and nobody is told when it goes
    latest: HashMap<u64, Prefix>,
}

impl Log {
    fn stored(&mut self, prefix: Prefix, parent: Prefix, tokens: &[u32]) {
        self.latest.insert(prefix.hash, prefix);
        let parent = (parent != Prefix::EMPTY).then_some(parent.hash);
        self.events.push(KvEvent::Stored { hash: prefix.hash, parent, tokens: tokens.to_vec() });
    }

    fn removed(&mut self, prefix: Prefix) {
        if self.latest.get(&prefix.hash) == Some(&prefix) {
            self.latest.remove(&prefix.hash);
            self.events.push(KvEvent::Removed { hash: prefix.hash });
        }
    }
}

fn hash(tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    // The unit tests want collisions.
    if cfg!(test) { hasher.finish() % 2 } else { hasher.finish() }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// Two hashes for all texts: a block is found for its own text only, behind its own beginning only.
        #[test]
        fn collisions_never_give_another_text(texts in vec(vec(0u32..4, 1..9), 1..30), blocks in 6u32..20) {
            let mut pool = BlockPool::new(blocks, 2, true);
            // What the device holds: for each block all tokens from the start of the text to its own last one.
            let mut contents = vec![Vec::new(); blocks as usize];
            for text in &texts {
                let mut held = Vec::new();
                let mut prefix = pool.acquire(text, &mut held);
                let mut known = 2 * held.len();
                prop_assert!(known < text.len());
                if let Some((block, kept)) = pool.take_tail(prefix, &text[known..]) {
                    held.push(block);
                    known += kept;
                    prop_assert!(known < text.len());
                    prop_assert!(contents[block as usize].starts_with(&text[..known]));
                }
                for (index, &block) in held.iter().enumerate() {
                    let end = known.min(2 * (index + 1));
                    prop_assert!(contents[block as usize].starts_with(&text[..end]));
                }
                while held.len() * 2 < text.len() {
                    held.push(pool.allocate().unwrap());
                }
                for index in known / 2..held.len() {
                    contents[held[index] as usize] = text[..text.len().min(2 * index + 2)].to_vec();
                    if let Some(whole) = text.get(2 * index..2 * index + 2) {
                        prefix = pool.store(held[index], prefix, whole);
                    }
                }
                if text.len() % 2 == 1 {
                    pool.release_tail(held.pop().unwrap(), prefix, &text[text.len() - 1..]);
                }
                held.into_iter().rev().for_each(|block| pool.release(block));
                prop_assert_eq!(pool.check_integrity(), Ok(()));
                prop_assert_eq!(pool.available(), blocks as usize);
            }
        }
    }

    #[test]
    fn a_text_is_gone_with_the_copy_that_is_found() {
        let mut pool = BlockPool::new(3, 1, true);
        let mut events = Vec::new();
        pool.take_events(&mut events);
        let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let beginning = pool.store(first, Prefix::EMPTY, &[1]);
        let text = pool.store(second, beginning, &[2]);
        pool.release(first);
        // The second allocation takes the beginning away from under the text, which stays in use.
        let again = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        let beginning = pool.store(again[0], Prefix::EMPTY, &[1]);
        assert_eq!(pool.store(again[1], beginning, &[2]).hash, text.hash);
        pool.take_events(&mut events);
        events.clear();
        pool.release(again[1]);
        let other = pool.allocate().unwrap();
        pool.take_events(&mut events);
        assert_eq!(events, [KvEvent::Removed { hash: text.hash }]);
        assert!(pool.acquire(&[1, 2, 3], &mut Vec::new()) == beginning, "the first copy is not found");
        events.clear();
        pool.release(second);
        pool.release(other);
        for _ in 0..2 {
            pool.allocate().unwrap();
        }
        pool.take_events(&mut events);
        assert_eq!(events, [], "nobody misses the first copy");
    }

    #[test]
    fn tails_behind_one_prefix_are_bounded() {
        let mut pool = BlockPool::new(200, 4, true);
        for token in 0..150 {
            let block = pool.allocate().unwrap();
            pool.release_tail(block, Prefix::EMPTY, &[token]);
            pool.check_integrity().unwrap();
        }
        assert_eq!(pool.cached(), MAX_TAILS);
        assert!(pool.take_tail(Prefix::EMPTY, &[85, 0]).is_none());
        assert!(pool.take_tail(Prefix::EMPTY, &[86, 0]).is_some());
        pool.clear_cache();
        assert_eq!((pool.cached(), pool.available()), (0, 199));
        pool.check_integrity().unwrap();
    }
}
