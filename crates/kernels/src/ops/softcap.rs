//! `x = cap · tanh(x / cap)`, in place: the bound that Gemma 2 puts on its logits (arXiv:2408.00118).

use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `softcap`.
#[derive(Clone, Copy, Debug)]
pub struct Softcap<'a> {
    /// `[tokens, width]` float, read and written
    pub x: &'a Tensor,
    pub cap: f32,
}

impl Softcap<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("softcap");
        c.tensor("x", self.x, ["tokens", "width"], DTypes::FLOAT)?;
        c.require(self.cap > 0.0, "cap", self.cap, "it must be above 0")
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let cap = f64::from(self.cap);
        let x: Vec<f64> = host::read(self.x)?.into_iter().map(|v| cap * (v / cap).tanh()).collect();
        host::write(self.x, &x)
    }
}

pub(super) fn cases() -> Vec<Case> {
    [(1, 1000), (3, 77)]
        .into_iter()
        .map(|(tokens, width)| {
            Case::new("softcap", format!("tokens={tokens} width={width}"), Tolerance::ELEMENTWISE, move |i| {
                let x = i.normal_scaled(&[tokens, width], 30.0)?;
                let (b, y) = (i.backend(), x.clone());
                Ok(Launch::new(move || b.softcap(&Softcap { x: &y, cap: 30.0 })).output("x", &x))
            })
        })
        .collect()
}
