//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in place.

use super::Rotation;
use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Which elements of a head form the pairs that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(i, i + rotary/2)`: Hugging Face checkpoints, GPT-NeoX
    Halves,
    /// `(2i, 2i + 1)`: the paper, and Llama weights as GGUF files order them
    Pairs,
}

/// Arguments of `rope`. Elements of a head beyond `2 · pairs` stay as they are.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// `[tokens, heads, head_dim]` float, read and written; rows may be strided
    pub x: &'a Tensor,
    /// `[tokens]` I32
    pub positions: &'a Tensor,
    /// `[pairs]` F32: radians per position, with any scaling already in it
    pub inv_freq: &'a Tensor,
    pub layout: RopeLayout,
    /// Factor on sine and cosine (YaRN, LongRoPE); 1 otherwise
    pub scale: f32,
}

impl Rope<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("rope");
        c.tensor("x", self.x, ["tokens", "heads", "head_dim"], DTypes::FLOAT)?;
        c.tensor("positions", self.positions, ["tokens"], DTypes::I32)?;
        c.tensor("inv_freq", self.inv_freq, ["pairs"], DTypes::F32)?;
        let pairs = c.size("pairs");
        c.require(2 * pairs <= c.size("head_dim"), "inv_freq", pairs, "twice its length must fit head_dim")
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let positions = host::read_i32(self.positions)?;
        let inv_freq = host::read(self.inv_freq)?;
        let [_, heads, head_dim] = [self.x.shape()[0], self.x.shape()[1], self.x.shape()[2]];
        let mut x = host::read(self.x)?;
        let rotation = Rotation { inv_freq: self.inv_freq, layout: self.layout, scale: self.scale };
        for (token, &position) in x.chunks_exact_mut(heads * head_dim).zip(&positions) {
            token.chunks_exact_mut(head_dim).for_each(|head| rotate(head, position, &inv_freq, &rotation));
        }
        host::write(self.x, &x)
    }
}

/// Rotates one head in place; `inv_freq` holds the values of the rotation's tensor.
pub(super) fn rotate(head: &mut [f64], position: i32, inv_freq: &[f64], rotation: &Rotation) {
    for (i, &freq) in inv_freq.iter().enumerate() {
        let (a, b) = match rotation.layout {
            RopeLayout::Halves => (i, i + inv_freq.len()),
            RopeLayout::Pairs => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = (f64::from(position) * freq).sin_cos();
        let (sin, cos) = (sin * f64::from(rotation.scale), cos * f64::from(rotation.scale));
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
        for (tokens, heads, head_dim, pairs, scale) in
            [(1, 9, 64, 32, 1.0), (5, 3, 64, 32, 1.2), (4, 2, 96, 48, 1.0), (3, 1, 10, 5, 1.0), (7, 4, 128, 16, 1.0), (2, 4, 256, 128, 1.0)]
        {
            let name = format!("{layout:?} tokens={tokens} heads={heads} head_dim={head_dim} pairs={pairs} scale={scale}");
            cases.push(Case::new("rope", name, Tolerance::ELEMENTWISE, move |i| {
                // The heads are a slice of a wider fused row; the rest of the row must stay untouched.
                let fused = i.normal(&[tokens, (heads + 2) * head_dim])?;
                let x = fused.narrow(1, head_dim, heads * head_dim).split_heads(head_dim);
                let positions: Vec<i32> = (0..tokens as i32).map(|t| t * 977 + 3).collect();
                let positions = i.backend().tensor_i32(&[tokens], &positions)?;
                let freq: Vec<f32> = (0..pairs).map(|p| 10_000f32.powf(-(p as f32) / pairs as f32)).collect();
                let inv_freq = i.backend().tensor_f32(&[pairs], &freq)?;
                let b = i.backend();
                Ok(Launch::new(move || b.rope(&Rope { x: &x, positions: &positions, inv_freq: &inv_freq, layout, scale }))
                    .output("fused", &fused))
            }));
        }
    }
    cases
}
