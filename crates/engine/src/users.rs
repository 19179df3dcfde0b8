//! What each user has been served, so that the next free place goes to whoever had least: virtual token counters (Sheng et
//! al. 2024, arXiv:2401.00588), of accounts, and within each of its users. Pure.

use std::{collections::HashMap, hash::Hash};

/// Whom a request belongs to. Requests without a user are those of one user, [`UserId::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId {
    /// Accounts are served alike, however many users each has
    pub account: u32,
    /// Users of one account are served alike
    pub user: u64,
}

/// Users, and accounts, without requests that are remembered.
const MAX_IDLE: usize = 1024;
/// A generated token takes a step of its own; a token of a prompt shares one with many.
const GENERATED_WEIGHT: u64 = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Users {
    accounts: Counters<u32>,
    users: Counters<UserId>,
}

/// Where the counters of a user with requests are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserSlot {
    account: u32,
    user: u32,
}

impl Users {
    /// A request has come.
    pub fn enter(&mut self, user: UserId) -> UserSlot {
        UserSlot {
            account: self.accounts.enter(user.account, |_| true),
            user: self.users.enter(user, |other| other.account == user.account),
        }
    }

    /// A request has ended.
    pub fn leave(&mut self, slot: UserSlot) {
        self.accounts.leave(slot.account);
        self.users.leave(slot.user);
    }

    /// A step computed tokens for a user and generated some.
    pub fn serve(&mut self, slot: UserSlot, computed: usize, generated: usize) {
        let tokens = computed as u64 + (GENERATED_WEIGHT - 1) * generated as u64;
        self.accounts.serve(slot.account, tokens);
        self.users.serve(slot.user, tokens);
    }

    /// What the user's account has been served, and the user: the least of these is next.
    pub fn served(&self, slot: UserSlot) -> (u64, u64) {
        (self.accounts.served(slot.account), self.users.served(slot.user))
    }

    /// Users with requests.
    pub fn active(&self) -> usize {
        self.users.active
    }

    /// Requests of all users.
    pub fn requests(&self) -> usize {
        self.users.all.iter().map(|u| u.requests).sum()
    }
}

/// What each of many has been served.
#[derive(Debug)]
struct Counters<K> {
    /// By slot: those with requests and those who are remembered; the others are `free`
    all: Vec<Counter<K>>,
    slots: HashMap<K, u32>,
    free: Vec<u32>,
    /// Those with requests
    active: usize,
}

#[derive(Debug)]
struct Counter<K> {
    key: K,
    /// Tokens, those that were generated counted [`GENERATED_WEIGHT`] times
    served: u64,
    /// Requests that wait or run
    requests: usize,
}

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self { all: Vec::new(), slots: HashMap::new(), free: Vec::new(), active: 0 }
    }
}

impl<K: Copy + Eq + Hash> Counters<K> {
    /// A request has come; returns the slot of whoever sent it. Whoever was away has saved up nothing: it starts with the
    /// least that any peer present has had.
    fn enter(&mut self, key: K, is_peer: impl Fn(&K) -> bool) -> u32 {
        let known = self.slots.get(&key).copied();
        if let Some(slot) = known.filter(|&slot| self.all[slot as usize].requests > 0) {
            self.all[slot as usize].requests += 1;
            return slot;
        }
        let present = self.all.iter().filter(|other| other.requests > 0 && is_peer(&other.key));
        let least = present.map(|other| other.served).min().unwrap_or(0);
        let served = known.map_or(0, |slot| self.all[slot as usize].served).max(least);
        let counter = Counter { key, served, requests: 1 };
        let slot = match known.or_else(|| self.free.pop()) {
            Some(slot) => {
                self.all[slot as usize] = counter;
                slot
            }
            None => {
                self.all.push(counter);
                (self.all.len() - 1) as u32
            }
        };
        self.slots.insert(key, slot);
        self.active += 1;
        slot
    }

    fn leave(&mut self, slot: u32) {
        let counter = &mut self.all[slot as usize];
        counter.requests -= 1;
        if counter.requests == 0 {
            self.active -= 1;
            if self.slots.len() - self.active > MAX_IDLE {
                let (all, free) = (&self.all, &mut self.free);
                self.slots.retain(|_, &mut slot| {
                    let present = all[slot as usize].requests > 0;
                    free.extend((!present).then_some(slot));
                    present
                });
            }
        }
    }

    fn serve(&mut self, slot: u32, tokens: u64) {
        self.all[slot as usize].served += tokens;
    }

    fn served(&self, slot: u32) -> u64 {
        self.all[slot as usize].served
    }
}
