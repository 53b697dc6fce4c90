//! Which instructions to use: found out at run time, or forced.
//!
//! Nothing here knows a kernel. Each kernel says beside itself what runs on which path: plain code by [`compiled`], code of its own
//! for an instruction set by a `match` on [`SimdPath::level`], one body for several widths of vector by [`lanes::Lanes`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod compiled;
pub(crate) mod lanes;

pub(crate) use compiled::compiled;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512, and tile registers for bytes.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// The vector instructions of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    /// And FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// F, BW, DQ and VL, and all that AVX2 machines have: FMA, POPCNT, BMI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// A path that this machine can run: no value of any other path can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimdPath(Path);

impl Default for SimdPath {
    fn default() -> Self {
        Self::best()
    }
}

impl SimdPath {
    pub const NAMES: [&'static str; 5] = ["amx", "avx512", "avx2", "neon", "portable"];

    /// The fastest path of this machine.
    pub fn best() -> Self {
        Self::NAMES
            .into_iter()
            .find_map(Self::named)
            .unwrap_or(SimdPath(Path::Portable))
    }

    /// The path of that name, if this machine has it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(SimdPath(Path::Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => Some(SimdPath(Path::Avx2)),
            #[cfg(target_arch = "x86_64")]
            "avx512"
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2") =>
            {
                Some(SimdPath(Path::Avx512))
            }
            #[cfg(target_arch = "x86_64")]
            "amx" if Self::named("avx512").is_some_and(Self::has_bytes) && amx::available() => {
                Some(SimdPath(Path::Amx))
            }
            #[cfg(target_arch = "aarch64")]
            "neon" if std::arch::is_aarch64_feature_detected!("neon") => Some(SimdPath(Path::Neon)),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Path::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Path::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Path::Neon => "neon",
        }
    }

    /// The processor has the instructions of this level, or the path would not exist: what a call of a function that is compiled
    /// for them rests on.
    #[inline]
    pub(crate) fn level(self) -> Level {
        match self.0 {
            Path::Portable => Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => Level::Avx512,
            #[cfg(target_arch = "aarch64")]
            Path::Neon => Level::Neon,
        }
    }

    /// The same with vectors of eight floats at most, for work too short to fill longer ones.
    #[inline]
    pub(crate) fn narrowed(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self.level() == Level::Avx512 {
            return SimdPath(Path::Avx2); // whose instructions such a processor has
        }
        self
    }

    /// Whether there are instructions for sums of products of bytes (AVX-512 VNNI).
    pub fn has_bytes(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.level() == Level::Avx512 && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether bytes are multiplied in tile registers.
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Path::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether bfloat16 numbers are multiplied in tile registers.
    pub fn has_bfloat16_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_tiles() && amx::has_bfloat16();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}
