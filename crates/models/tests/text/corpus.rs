//! The corpora of `tools/text_golden.py`, made the same way.

use ferrum_models::text::{TokenKind, Tokenizer};

const CHUNK: usize = 500;

const RANGES: [(u32, u32); 22] = [
    (0x20, 0x7F),
    (0x41, 0x5B),
    (0x61, 0x7B),
    (0x30, 0x3A),
    (0x09, 0x0E),
    (0x20, 0x21),
    (0xA0, 0x180),
    (0x300, 0x370),
    (0x400, 0x460),
    (0x5D0, 0x5EB),
    (0x620, 0x670),
    (0x900, 0x970),
    (0xE01, 0xE3B),
    (0x2000, 0x2070),
    (0x3040, 0x3100),
    (0x4E00, 0x9FA6),
    (0xAC00, 0xD7A4),
    (0x1F300, 0x1F650),
    (0x1F3FB, 0x1F400),
    (0x200D, 0x200E),
    (0xFE0F, 0xFE10),
    (0x0, 0x20),
];

pub struct Lcg(u64);

impl Lcg {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// 10,000 random byte strings, made valid UTF-8.
pub fn random_bytes() -> Vec<String> {
    let mut random = Lcg::new(1);
    let text = |_| {
        let bytes: Vec<u8> = (0..random.below(64)).map(|_| random.below(256) as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (0..10_000).map(text).collect()
}

/// 5,000 strings of short runs out of one script or kind of character each.
pub fn random_chars() -> Vec<String> {
    let mut random = Lcg::new(2);
    let text = |_| {
        let (mut left, mut text) = (random.below(40), String::new());
        while left > 0 {
            let (first, end) = RANGES[random.below(RANGES.len())];
            let run = left.min(1 + random.below(6));
            text.extend((0..run).map(|_| char::from_u32(first + random.below((end - first) as usize) as u32).unwrap()));
            left -= run;
        }
        text
    };
    (0..5_000).map(text).collect()
}

/// 5,000 strings of ordinary tokens put together.
pub fn random_tokens(tokenizer: &Tokenizer) -> Vec<String> {
    let mut random = Lcg::new(3);
    let text = |_| {
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(12) {
            let id = random.below(tokenizer.vocab_size()) as u32;
            if tokenizer.kind(id) == Some(TokenKind::Normal) {
                bytes.extend_from_slice(tokenizer.token_bytes(id).unwrap());
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (0..5_000).map(text).collect()
}

/// One FNV-1a hash for each 500 texts of what they encode to.
pub fn hashes(texts: &[String], encode: impl Fn(&str) -> Vec<u32>) -> Vec<String> {
    let hash = |chunk: &[String]| {
        let ids = chunk.iter().flat_map(|text| encode(text).into_iter().chain([u32::MAX]));
        let byte = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100000001B3);
        format!("{:016x}", ids.flat_map(u32::to_le_bytes).fold(0xCBF29CE484222325, byte))
    };
    texts.chunks(CHUNK).map(hash).collect()
}
