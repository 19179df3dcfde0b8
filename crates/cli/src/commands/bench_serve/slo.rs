//! A service level objective: bounds that a good request keeps to.

use std::str::FromStr;

use serde::Serialize;

use super::record::Record;

/// Upper bounds in milliseconds; what has none is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
}

impl Slo {
    /// Whether the request ended well and within all bounds. An answer of one token has no time per output token to exceed.
    pub fn met_by(&self, record: &Record) -> bool {
        let within = |bound: Option<f64>, value: Option<f64>| bound.zip(value).is_none_or(|(bound, value)| value * 1000.0 <= bound);
        record.failure.is_none()
            && within(self.ttft_ms, record.ttft_s())
            && within(self.tpot_ms, record.tpot_s())
            && within(self.e2e_ms, Some(record.e2e_s()))
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, bound) = part.split_once(['=', ':']).ok_or_else(|| format!("`{part}` must be METRIC=MILLISECONDS"))?;
            let field = match name.trim() {
                "ttft" => &mut slo.ttft_ms,
                "tpot" => &mut slo.tpot_ms,
                "e2e" | "e2el" => &mut slo.e2e_ms,
                _ => return Err(format!("`{name}` is not one of ttft, tpot, e2e")),
            };
            let bound = bound.trim().parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms > 0.0);
            *field = Some(bound.ok_or_else(|| format!("the bound of `{name}` must be a number of milliseconds above 0"))?);
        }
        Ok(slo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench_serve::failure::Failure;

    #[test]
    fn bounds_are_read_or_explained() {
        let slo: Slo = "ttft=200, tpot=12.5".parse().unwrap();
        assert_eq!(slo, Slo { ttft_ms: Some(200.0), tpot_ms: Some(12.5), e2e_ms: None });
        assert_eq!("e2el:9".parse::<Slo>().unwrap().e2e_ms, Some(9.0));
        for (text, part) in [("itl=3", "not one of"), ("ttft", "METRIC="), ("ttft=-1", "above 0"), ("tpot=inf", "above 0"), ("", "METRIC=")]
        {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_request_is_good_when_it_keeps_to_every_bound() {
        // First token after 100 ms, then 4 tokens 20 ms apart.
        let record = Record { tokens_s: vec![0.1, 0.12, 0.14, 0.16, 0.18], output_tokens: 5, end_s: 0.2, ..Record::default() };
        let meets = |text: &str| text.parse::<Slo>().unwrap().met_by(&record);
        assert!(meets("ttft=100.001,tpot=20.001,e2e=200.001"));
        assert!(!meets("ttft=99") && !meets("tpot=19") && !meets("e2e=199") && !meets("ttft=500,e2e=199"));
        let failed = Record { failure: Some(Failure::new("timeout", "")), ..record.clone() };
        assert!(!Slo { e2e_ms: Some(9999.0), ..Slo::default() }.met_by(&failed));
        let one = Record { tokens_s: vec![0.1], output_tokens: 1, ..record };
        assert!("tpot=0.1".parse::<Slo>().unwrap().met_by(&one));
    }
}
