//! `out[t] = table[ids[t]] · scale`: rows of the embedding table, dequantised.

use crate::{
    Contract, DType, DTypes, PreparedWeight, Result, Tensor, host,
    reference::ReferenceWeight,
    testkit::{Case, Launch, Tolerance},
};

/// Arguments of `embed`. Ids outside the table are the caller's error; backends read row 0 for them. The ids that a sampler
/// has drawn need not come to the host first: `−1 − n` stands for `drawn[n]`.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// `[tokens]` I32
    pub ids: &'a Tensor,
    /// `[rows]` I32: ids
    pub drawn: Option<&'a Tensor>,
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
        if let Some(drawn) = self.drawn {
            c.tensor("drawn", drawn, ["rows"], DTypes::I32)?;
        }
        c.weight("table", self.table, ["vocab", "hidden"])?;
        c.tensor("out", self.out, ["tokens", "hidden"], DTypes::FLOAT)
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let (table, hidden) = (ReferenceWeight::of(self.table)?, self.table.cols());
        let mut out = Vec::with_capacity(self.out.elements());
        let drawn = self.drawn.map(host::read_i32).transpose()?.unwrap_or_default();
        for id in host::read_i32(self.ids)? {
            let id = usize::try_from(-1 - i64::from(id)).ok().and_then(|n| drawn.get(n).copied()).unwrap_or(id);
            let row = usize::try_from(id).ok().filter(|&r| r < self.table.rows()).unwrap_or(0);
            out.extend(table[row * hidden..][..hidden].iter().map(|&v| f64::from(v) * f64::from(self.scale)));
        }
        host::write(self.out, &out)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let drawn = [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_K, DType::Q6_K].map(|dtype| {
        Case::new("embed", format!("{dtype} drawn ids"), Tolerance::ELEMENTWISE, move |i| {
            let table = i.weight(&[(37, dtype)], 512)?;
            let ids = i.backend().tensor_i32(&[6], &[0, -1, -3, 5, -2, -4])?;
            let drawn = i.backend().tensor_i32(&[3], &[9, 36, 2])?;
            let out = i.activations(&[6, 512])?;
            let (b, o) = (i.backend(), out.clone());
            let run = move || b.embed(&Embed { ids: &ids, drawn: Some(&drawn), table: &table, scale: 1.0, out: &o });
            Ok(Launch::new(run).output("out", &out))
        })
    });
    DType::weights()
        .map(|dtype| {
            Case::new("embed", format!("{dtype} vocab=37 hidden=512"), Tolerance::ELEMENTWISE, move |i| {
                let table = i.weight(&[(37, dtype)], 512)?;
                let ids = i.backend().tensor_i32(&[5], &[0, 36, 7, 7, -1])?;
                let out = i.activations(&[5, 512])?;
                let (b, o) = (i.backend(), out.clone());
                Ok(Launch::new(move || b.embed(&Embed { ids: &ids, drawn: None, table: &table, scale: 1.5, out: &o })).output("out", &out))
            })
        })
        .chain(drawn)
        .collect()
}
