//! Picks the next token of every sequence, a sequence per chunk.

use ferrum_kernels::{
    Result,
    ops::{Sample, SampleParams, token_noise},
};

use crate::{
    Simd,
    pool::Pool,
    storage::{Rows, View},
};

pub(crate) fn run(pool: &Pool, _level: Simd, op: &Sample) -> Result<()> {
    op.check()?;
    let (logits, out) = (Rows::<f32>::of("sample", "logits", op.logits)?, View::<i32, 1>::of("sample", "out", op.out)?);
    let params = Rows::<u8>::of("sample", "params", op.params)?;
    let counts = op.counts.map(|c| Rows::<i32>::of("sample", "counts", c)).transpose()?;
    pool.chunks(logits.shape[0], 1, &|_, seqs| {
        for seq in seqs {
            // SAFETY: in bounds by the contract; each sequence belongs to one chunk, and no two share a counts row.
            unsafe {
                let p: SampleParams = bytemuck::pod_read_unaligned(&params.row([seq, 0])[..size_of::<SampleParams>()]);
                let counts = counts.filter(|c| (0..c.shape[0] as i32).contains(&p.counts_row));
                let mut counts = counts.map(|c| c.row_mut([p.counts_row as usize, 0]));
                let mut row: Vec<f64> = logits.row([seq, 0]).iter().map(|&l| l.into()).collect();
                if let Some(counts) = &counts {
                    row.iter_mut().zip(counts.iter()).for_each(|(l, &c)| *l = penalize(*l, c, &p));
                }
                let token = draw(&row, &p);
                if let Some(counts) = &mut counts {
                    counts[token] += 1;
                }
                *out.at([seq]) = token as i32;
            }
        }
    });
    Ok(())
}

fn penalize(logit: f64, count: i32, p: &SampleParams) -> f64 {
    let generated = count & (Sample::IN_PROMPT - 1);
    let factor = if count == 0 { 1.0 } else { f64::from(p.repetition_penalty) };
    let logit = if logit > 0.0 { logit / factor } else { logit * factor };
    let seen = f64::from(p.presence_penalty) + f64::from(p.frequency_penalty) * f64::from(generated);
    if generated > 0 { logit - seen } else { logit }
}

fn draw(logits: &[f64], p: &SampleParams) -> usize {
    let largest = |items: &mut dyn Iterator<Item = (usize, f64)>| {
        items.fold((0, f64::NEG_INFINITY), |best, item| if item.1 > best.1 { item } else { best }).0
    };
    if p.temperature <= 0.0 {
        return largest(&mut logits.iter().copied().enumerate());
    }
    let mut order: Vec<(usize, f64)> = logits.iter().map(|l| l / f64::from(p.temperature)).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if p.top_k > 0 {
        order.truncate(p.top_k as usize);
    }
    let max = order[0].1;
    let total: f64 = order.iter().map(|o| (o.1 - max).exp()).sum();
    let mut reached = 0.0;
    let mut kept = 0;
    while kept < order.len() && (kept == 0 || reached < f64::from(p.top_p) * total) {
        reached += (order[kept].1 - max).exp();
        kept += 1;
    }
    order.truncate(kept);
    order.retain(|o| (o.1 - max).exp() >= f64::from(p.min_p));
    order.sort_by_key(|o| o.0);
    largest(&mut order.iter().map(|&(i, l)| (i, l + f64::from(token_noise(p.seed, p.position, i as u32)))))
}
