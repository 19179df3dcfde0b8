//! Rotary frequencies and the ways families stretch them to longer contexts.
//!
//! Linear (Chen et al. 2023, arXiv:2306.15595), Llama 3 (the 3.1 release's piecewise rule), YaRN (Peng et al. 2023,
//! arXiv:2309.00071), LongRoPE (Ding et al. 2024, arXiv:2402.13753).

use std::f32::consts::PI;

use crate::{Result, config::Config, config::invalid};

/// What `rope` needs besides positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position, one per rotated pair
    pub inv_freq: Vec<f32>,
    /// Factor on sine and cosine
    pub scale: f32,
}

/// The facts outside the rope section that a scaling rule may use.
#[derive(Clone, Copy, Debug)]
pub struct RopeShape {
    /// Elements of a head that are rotated
    pub rotary_dim: usize,
    pub theta: f32,
    /// `max_position_embeddings`
    pub max_positions: usize,
    /// The context this load will serve: LongRoPE has one table for short and one for long contexts
    pub context: usize,
}

impl RopeTable {
    /// Frequencies for `shape`, scaled as `scaling` (a `rope_scaling` or `rope_parameters` object) says.
    ///
    /// # Errors
    /// When the rule is unknown, a parameter is missing or out of range, or a key is not honoured.
    pub fn new(shape: RopeShape, scaling: Option<&Config>) -> Result<Self> {
        let base = frequencies(shape.rotary_dim, shape.theta);
        let Some(c) = scaling else { return Ok(Self { inv_freq: base, scale: 1.0 }) };
        c.get("rope_theta");
        c.get("partial_rotary_factor");
        c.get("original_max_position_embeddings");
        let kind = match c.string("rope_type")? {
            Some(kind) => kind,
            None => c.string("type")?.unwrap_or_else(|| "default".into()),
        };
        let _ = c.get("type");
        let table = match kind.as_str() {
            "default" => Self { inv_freq: base, scale: 1.0 },
            "linear" => {
                let factor = positive(c, "factor", None)?;
                Self { inv_freq: base.iter().map(|f| f / factor).collect(), scale: 1.0 }
            }
            "llama3" => llama3(&base, shape, c)?,
            "yarn" => yarn(&base, shape, c)?,
            "longrope" | "su" => longrope(&base, shape, c)?,
            other => return Err(invalid("rope_scaling.rope_type", other, "known are default, linear, llama3, yarn and longrope")),
        };
        c.finish()?;
        Ok(table)
    }
}

fn frequencies(rotary_dim: usize, theta: f32) -> Vec<f32> {
    (0..rotary_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / rotary_dim as f32)).collect()
}

fn positive(c: &Config, key: &str, default: Option<f32>) -> Result<f32> {
    match c.f32(key)?.or(default) {
        Some(v) if v > 0.0 => Ok(v),
        Some(v) => Err(invalid(&format!("rope_scaling.{key}"), v, "it must be above 0")),
        None => Err(crate::Error::MissingKey { key: format!("rope_scaling.{key}") }),
    }
}

fn original_context(c: &Config, shape: RopeShape) -> Result<f32> {
    let original = c.usize("original_max_position_embeddings")?.unwrap_or(shape.max_positions);
    if original == 0 { Err(invalid("rope_scaling.original_max_position_embeddings", 0, "it must be above 0")) } else { Ok(original as f32) }
}

/// Long waves are slowed by `factor`, short ones kept, those between blended.
fn llama3(base: &[f32], shape: RopeShape, c: &Config) -> Result<RopeTable> {
    let (factor, original) = (positive(c, "factor", None)?, original_context(c, shape)?);
    let (low, high) = (positive(c, "low_freq_factor", None)?, positive(c, "high_freq_factor", None)?);
    if high <= low {
        return Err(invalid("rope_scaling.high_freq_factor", high, format!("it must be above low_freq_factor ({low})")));
    }
    let scaled = base.iter().map(|&f| {
        let wavelength = 2.0 * PI / f;
        if wavelength < original / high {
            f
        } else if wavelength > original / low {
            f / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    });
    Ok(RopeTable { inv_freq: scaled.collect(), scale: 1.0 })
}

fn yarn(base: &[f32], shape: RopeShape, c: &Config) -> Result<RopeTable> {
    let (factor, original) = (positive(c, "factor", None)?, original_context(c, shape)?);
    let (beta_fast, beta_slow) = (positive(c, "beta_fast", Some(32.0))?, positive(c, "beta_slow", Some(1.0))?);
    let magnitude = |factor: f32, mscale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let scale = match (c.f32("attention_factor")?, c.f32("mscale")?, c.f32("mscale_all_dim")?) {
        (Some(scale), ..) => scale,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => magnitude(factor, m) / magnitude(factor, all),
        _ => magnitude(factor, 1.0),
    };
    // The pair that turns `rotations` times within the original context.
    let dim = shape.rotary_dim as f32;
    let pair = |rotations: f32| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * shape.theta.ln());
    let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
    if c.bool("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if high == low { 0.001 } else { high - low };
    let scaled = base.iter().enumerate().map(|(i, &f)| {
        let extrapolate = 1.0 - ((i as f32 - low) / width).clamp(0.0, 1.0);
        f / factor * (1.0 - extrapolate) + f * extrapolate
    });
    Ok(RopeTable { inv_freq: scaled.collect(), scale })
}

fn longrope(base: &[f32], shape: RopeShape, c: &Config) -> Result<RopeTable> {
    let original = original_context(c, shape)?;
    let (short, long) = (factors(c, "short_factor", base.len())?, factors(c, "long_factor", base.len())?);
    let factor = match c.f32("factor")? {
        Some(f) => f,
        None => shape.max_positions as f32 / original,
    };
    let scale = match c.f32("attention_factor")? {
        Some(scale) => scale,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    let by = if shape.context as f32 > original { long } else { short };
    Ok(RopeTable { inv_freq: base.iter().zip(by).map(|(f, by)| f / by).collect(), scale })
}

fn factors(c: &Config, key: &str, len: usize) -> Result<Vec<f32>> {
    let list = c.get(key).and_then(|v| v.as_array().cloned()).unwrap_or_default();
    let values: Vec<f32> = list.iter().filter_map(|v| v.as_f64()).map(|v| v as f32).filter(|v| *v > 0.0 && v.is_finite()).collect();
    if values.len() == len && list.len() == len {
        return Ok(values);
    }
    Err(invalid(&format!("rope_scaling.{key}"), format!("a list of {}", list.len()), format!("it must be {len} numbers above 0")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SHAPE: RopeShape = RopeShape { rotary_dim: 64, theta: 10_000.0, max_positions: 8192, context: 4096 };

    fn table(scaling: serde_json::Value) -> Result<RopeTable> {
        RopeTable::new(SHAPE, Some(&Config::new(scaling.as_object().unwrap().clone())))
    }

    #[test]
    fn linear_slows_every_pair() {
        let t = table(json!({"type": "linear", "factor": 4.0})).unwrap();
        assert_eq!((t.inv_freq[0], t.scale), (0.25, 1.0));
    }

    #[test]
    fn llama3_keeps_short_waves_and_slows_long_ones() {
        let t = table(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}))
        .unwrap();
        let base = frequencies(64, 10_000.0);
        assert_eq!(t.inv_freq[0], base[0]);
        assert_eq!(t.inv_freq[31], base[31] / 8.0);
    }

    #[test]
    fn unknown_rules_and_keys_are_refused() {
        assert!(table(json!({"rope_type": "dynamic", "factor": 2.0})).is_err());
        assert!(table(json!({"rope_type": "linear", "factor": 2.0, "surprise": 1})).unwrap_err().to_string().contains("surprise"));
        assert!(table(json!({"rope_type": "linear", "factor": 0.0})).is_err());
        assert!(table(json!({"rope_type": "linear"})).is_err());
    }
}
