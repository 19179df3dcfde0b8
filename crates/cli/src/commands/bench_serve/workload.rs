//! What is asked: the i-th request of a measurement, which depends on the seed alone and not on what came before.

use super::dataset::Dataset;
use crate::{args::bench_serve::WorkloadArgs, random::Random};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub prompt: Prompt,
    /// Of the prompt, where they are known exactly
    pub input_tokens: Option<usize>,
    /// At most, or exactly
    pub output_tokens: usize,
    /// Whether the answer shall have that many tokens and no fewer
    pub exact: bool,
}

/// What random prompts are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Alphabet {
    /// Token ids below this
    Below(u32),
    /// These token ids
    Ids(Vec<u32>),
    /// Words, where the server takes no ids: this many tokens for each, and these around a prompt
    Words { tokens_per_word: f64, overhead: f64 },
}

/// Tokens of answers when nobody says
pub const DEFAULT_OUTPUT_TOKENS: usize = 128;
/// Tokens of answers that the model ends
const MAX_OUTPUT_TOKENS: usize = 1024;

#[derive(Debug)]
pub enum Workload {
    Random(RandomPrompts),
    Dataset {
        prompts: Dataset,
        output_len: Option<usize>,
        /// The record that the next measurement begins with
        next: usize,
    },
}

#[derive(Debug)]
pub struct RandomPrompts {
    alphabet: Alphabet,
    input_len: usize,
    output_len: usize,
    range_ratio: f64,
    prefixes: Vec<Prompt>,
    prefix_len: usize,
    seed: u64,
}

/// First numbers of the paths to streams of random numbers
const PREFIX: u64 = 1;
const REQUEST: u64 = 2;

impl RandomPrompts {
    pub fn new(args: &WorkloadArgs, alphabet: Alphabet) -> Self {
        let prefix = |i| alphabet.draw(args.prefix_len, &mut Random::of(&[args.seed, PREFIX, i]));
        Self {
            prefixes: (0..args.prefixes as u64).map(prefix).collect(),
            input_len: args.input_len,
            output_len: args.output_len.unwrap_or(DEFAULT_OUTPUT_TOKENS),
            range_ratio: args.range_ratio,
            prefix_len: args.prefix_len,
            seed: args.seed,
            alphabet,
        }
    }

    fn request(&self, series: u64, i: u64) -> Request {
        let mut random = Random::of(&[self.seed, REQUEST, series, i]);
        let mut length = |mean: usize| {
            let spread = (mean as f64 * self.range_ratio).round() as usize;
            (mean - spread + random.below(2 * spread + 1)).max(1)
        };
        let (input, output_tokens) = (length(self.input_len), length(self.output_len));
        // The words around a prompt and its beginning are there once.
        let own = self.alphabet.without_overhead(input);
        let prompt = match self.prefix_len {
            0 => self.alphabet.draw(own, &mut random),
            _ => {
                let prefix = &self.prefixes[random.below(self.prefixes.len())];
                join(prefix.clone(), self.alphabet.draw(own, &mut random))
            }
        };
        let exact = matches!(prompt, Prompt::Ids(_));
        Request { prompt, input_tokens: exact.then_some(self.prefix_len + input), output_tokens, exact: true }
    }
}

fn join(first: Prompt, second: Prompt) -> Prompt {
    match (first, second) {
        (Prompt::Ids(first), Prompt::Ids(second)) => Prompt::Ids([first, second].concat()),
        (Prompt::Text(first), Prompt::Text(second)) => Prompt::Text(format!("{first} {second}")),
        (_, second) => second,
    }
}

impl Alphabet {
    /// A prompt of `tokens` tokens, or of words that make about as many.
    pub fn draw(&self, tokens: usize, random: &mut Random) -> Prompt {
        match self {
            Self::Below(vocab) => Prompt::Ids((0..tokens).map(|_| random.below(*vocab as usize) as u32).collect()),
            Self::Ids(ids) => Prompt::Ids((0..tokens).map(|_| ids[random.below(ids.len())]).collect()),
            Self::Words { tokens_per_word, .. } => words(((tokens as f64 / tokens_per_word).round() as usize).max(1), random),
        }
    }

    fn without_overhead(&self, tokens: usize) -> usize {
        match self {
            Self::Words { overhead, .. } => tokens.saturating_sub(overhead.round() as usize).max(1),
            _ => tokens,
        }
    }
}

/// `count` random words.
pub fn words(count: usize, random: &mut Random) -> Prompt {
    let words: Vec<&str> = (0..count).map(|_| WORDS[random.below(WORDS.len())]).collect();
    Prompt::Text(words.join(" "))
}

impl Workload {
    /// The `i`-th request of the series, of which each measurement has its own: no prompt comes twice by chance.
    pub fn request(&self, series: u64, i: u64) -> Request {
        match self {
            Self::Random(prompts) => prompts.request(series, i),
            Self::Dataset { prompts, output_len, next } => {
                let item = prompts.get(next + i as usize);
                let asked = output_len.or(item.output_tokens);
                Request {
                    prompt: Prompt::Text(item.prompt.clone()),
                    input_tokens: None,
                    output_tokens: asked.unwrap_or(MAX_OUTPUT_TOKENS),
                    exact: asked.is_some(),
                }
            }
        }
    }

    /// Goes on behind the `used` requests of the last measurement.
    pub fn advance(&mut self, used: usize) {
        if let Self::Dataset { next, .. } = self {
            *next += used;
        }
    }
}

/// Frequent English words, which most vocabularies have as one token each.
const WORDS: [&str; 128] = [
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he", "his", "but", "at",
    "are", "this", "have", "had", "they", "which", "one", "you", "were", "her", "all", "she", "there", "would", "their", "we", "him",
    "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said", "what", "up", "its", "about", "into", "than", "them",
    "can", "only", "other", "new", "some", "could", "time", "these", "two", "may", "then", "do", "first", "any", "my", "now", "such",
    "like", "our", "over", "man", "me", "even", "most", "made", "after", "also", "did", "many", "before", "must", "through", "back",
    "years", "where", "much", "your", "way", "well", "down", "should", "because", "each", "just", "those", "people", "how", "too",
    "little", "state", "good", "very", "make", "world", "still", "own", "see", "men", "work", "long", "get", "here", "between", "both",
    "life", "being", "under", "never", "day", "same", "another", "know",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(alphabet: Alphabet) -> RandomPrompts {
        let args = WorkloadArgs {
            input_len: 100,
            output_len: Some(40),
            range_ratio: 0.0,
            prefix_len: 0,
            prefixes: 1,
            dataset: None,
            temperature: 0.0,
            extra_body: None,
            seed: 7,
        };
        RandomPrompts::new(&args, alphabet)
    }

    fn ids(request: &Request) -> &[u32] {
        match &request.prompt {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn prompts_have_the_tokens_asked_for_and_depend_on_the_seed_alone() {
        let random = prompts(Alphabet::Below(50));
        let request = random.request(0, 3);
        assert_eq!((ids(&request).len(), request.input_tokens, request.output_tokens, request.exact), (100, Some(100), 40, true));
        assert!(ids(&request).iter().all(|&id| id < 50));
        assert_eq!(request, random.request(0, 3));
        assert_ne!(request, random.request(0, 4));
        assert_ne!(request, random.request(1, 3));
        let listed = prompts(Alphabet::Ids(vec![5, 9]));
        assert!(ids(&listed.request(0, 0)).iter().all(|id| [5, 9].contains(id)));
    }

    #[test]
    fn lengths_fill_their_range() {
        let random = RandomPrompts { range_ratio: 0.25, ..prompts(Alphabet::Below(50)) };
        let lengths: Vec<usize> = (0..2000).map(|i| random.request(0, i).input_tokens.unwrap()).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&75), Some(&125)));
        let mean = lengths.iter().sum::<usize>() as f64 / 2000.0;
        assert!((mean - 100.0).abs() < 1.5, "{mean}");
        assert!((0..500).all(|i| (30..=50).contains(&random.request(0, i).output_tokens)));
    }

    #[test]
    fn beginnings_are_shared_and_as_many_as_asked_for() {
        let args = WorkloadArgs {
            input_len: 10,
            output_len: None,
            range_ratio: 0.0,
            prefix_len: 64,
            prefixes: 3,
            dataset: None,
            temperature: 0.0,
            extra_body: None,
            seed: 1,
        };
        let random = RandomPrompts::new(&args, Alphabet::Below(1000));
        let requests: Vec<Request> = (0..100).map(|i| random.request(i % 2, i)).collect();
        assert!(requests.iter().all(|r| r.input_tokens == Some(74) && ids(r).len() == 74));
        let distinct = |part: fn(&[u32]) -> &[u32]| requests.iter().map(|r| part(ids(r))).collect::<std::collections::HashSet<_>>().len();
        assert_eq!((distinct(|ids| &ids[..64]), distinct(|ids| &ids[64..])), (3, 100));
    }

    #[test]
    fn texts_leave_room_for_what_the_server_adds() {
        let random = prompts(Alphabet::Words { tokens_per_word: 1.25, overhead: 20.0 });
        let request = random.request(0, 0);
        let Prompt::Text(text) = &request.prompt else { panic!("{request:?}") };
        // (100 - 20) / 1.25
        assert_eq!((text.split(' ').count(), request.input_tokens), (64, None));
    }
}
