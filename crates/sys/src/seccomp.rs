//! Loading a seccomp filter that somebody else compiled.

use crate::{Errno, Result, check};

/// A classic BPF program for `SECCOMP_SET_MODE_FILTER`.
#[derive(Debug, Clone)]
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Decodes an array of `struct sock_filter` in little endian.
    ///
    /// # Errors
    /// `EINVAL` when it is empty, longer than the kernel's 4096 instructions, or not a whole number of them.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > 4096 {
            return Err(Errno::INVAL);
        }
        let decode = |b: &[u8; 8]| libc::sock_filter {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        };
        Ok(Self(instructions.iter().map(decode).collect()))
    }

    /// Puts the filter over the calling thread, for good. Needs no-new-privileges or CAP_SYS_ADMIN.
    ///
    /// # References
    /// seccomp(2).
    pub fn load(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_| Errno::INVAL)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: `program` describes a live array of `len` instructions, which the kernel copies and checks.
        check(unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_programs_decode() {
        assert_eq!(Filter::decode(&[]).unwrap_err(), Errno::INVAL);
        assert_eq!(Filter::decode(&[6; 9]).unwrap_err(), Errno::INVAL);
        let filter = Filter::decode(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f]).unwrap();
        assert_eq!((filter.0[0].code, filter.0[0].k), (6, 0x7fff_0000));
    }
}
