//! `out[n] = x[rows[n]]`: the last token of each sequence on its way to the output head.

use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `gather_rows`. `x` and `out` must not overlap.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows<'a> {
    /// `[tokens, hidden]` float
    pub x: &'a Tensor,
    /// `[picked]` I32, each below `tokens`
    pub rows: &'a Tensor,
    /// `[picked, hidden]` float
    pub out: &'a Tensor,
}

impl GatherRows<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("gather_rows");
        c.tensor("x", self.x, ["tokens", "hidden"], DTypes::FLOAT)?;
        c.tensor("rows", self.rows, ["picked"], DTypes::I32)?;
        c.tensor("out", self.out, ["picked", "hidden"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let hidden = self.x.shape()[1];
        let x = host::read(self.x)?;
        let mut out = Vec::with_capacity(self.out.elements());
        for row in host::read_i32(self.rows)? {
            let row = usize::try_from(row).ok().filter(|&r| r < self.x.shape()[0]).unwrap_or(0);
            out.extend_from_slice(&x[row * hidden..][..hidden]);
        }
        host::write(self.out, &out)
    }
}

pub(super) fn cases() -> Vec<Case> {
    [(1, 576, vec![0]), (9, 33, vec![8, 0, 3, 3]), (40, 896, vec![39, 11])]
        .into_iter()
        .map(|(tokens, hidden, rows)| {
            Case::new("gather_rows", format!("tokens={tokens} hidden={hidden} picked={}", rows.len()), Tolerance::ELEMENTWISE, move |i| {
                let x = i.normal(&[tokens, hidden])?;
                let picked = i.backend().tensor_i32(&[rows.len()], &rows)?;
                let out = i.activations(&[rows.len(), hidden])?;
                let (b, o) = (i.backend(), out.clone());
                Ok(Launch::new(move || b.gather_rows(&GatherRows { x: &x, rows: &picked, out: &o })).output("out", &out))
            })
        })
        .collect()
}
