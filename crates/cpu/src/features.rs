//! What this processor can do, found at run time.

use std::fmt;

use ferrum_kernels::{Error, Result};

/// The instruction sets that kernels are written for, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable,
    /// AVX2, FMA, F16C
    Avx2,
    /// AVX2 and the 256-bit VNNI instructions of AVX-VNNI
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI
    Avx512,
}

impl Simd {
    /// Every level, from least to most.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// The most this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|s| s.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether kernels of this level run on this processor.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    /// Whether kernels of this level run on this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// `self`, when the processor has it.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(crate) fn checked(self) -> Result<Self> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(Error::Unsupported { backend: crate::NAME, op: "kernels", what: format!("{self} on this processor") })
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::AvxVnni => "AVX-VNNI",
            Self::Avx512 => "AVX-512 VNNI",
        })
    }
}

/// The processor's name for people.
pub(crate) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or_else(|| format!("{} CPU", std::env::consts::ARCH), |(_, name)| name.trim().to_owned())
}

/// Total and available main memory in bytes; zero where the system does not say.
pub(crate) fn memory_bytes() -> (u64, u64) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    (field("MemTotal:").unwrap_or(0), field("MemAvailable:").unwrap_or(0))
}
