//! `attention`: which kernel takes which shape.

mod naive;

use ferrum_kernels::{Result, ops::Attention};

use crate::context::Context;

pub(crate) fn run(cx: &Context, op: &Attention) -> Result<()> {
    op.check()?;
    naive::run(cx, op)
}
