//! `out[t] = table[ids[t]] · scale`: rows of the embedding table, dequantised.

use crate::{
    Contract, DType, DTypes, PreparedWeight, Result, Tensor, host,
    reference::ReferenceWeight,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `embed`. Ids outside the table are the caller's error; backends read row 0 for them.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// `[tokens]` I32
    pub ids: &'a Tensor,
    /// `[vocab, hidden]` any weight dtype
    pub table: &'a PreparedWeight,
    /// 1 but for families that scale their embeddings
    pub scale: f32,
    /// `[tokens, hidden]` float
    pub out: &'a Tensor,
}

impl Embed<'_> {
    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("embed");
        c.tensor("ids", self.ids, ["tokens"], DTypes::I32)?;
        c.weight("table", self.table, ["vocab", "hidden"])?;
        c.tensor("out", self.out, ["tokens", "hidden"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let (table, hidden) = (ReferenceWeight::of(self.table)?, self.table.cols());
        let mut out = Vec::with_capacity(self.out.elements());
        for id in host::read_i32(self.ids)? {
            let row = usize::try_from(id).ok().filter(|&r| r < self.table.rows()).unwrap_or(0);
            out.extend(table[row * hidden..][..hidden].iter().map(|&v| f64::from(v) * f64::from(self.scale)));
        }
        host::write(self.out, &out)
    }
}

pub(super) fn cases() -> Vec<Case> {
    DType::weights()
        .map(|dtype| {
            Case::new("embed", format!("{dtype} vocab=37 hidden=512"), Tolerance::ELEMENTWISE, move |i| {
                let table = i.weight(&[(37, dtype)], 512)?;
                let ids = i.backend().tensor_i32(&[5], &[0, 36, 7, 7, -1])?;
                let out = i.activations(&[5, 512])?;
                let (b, o) = (i.backend(), out.clone());
                Ok(Launch::new(move || b.embed(&Embed { ids: &ids, table: &table, scale: 1.5, out: &o })).output("out", &out))
            })
        })
        .collect()
}
