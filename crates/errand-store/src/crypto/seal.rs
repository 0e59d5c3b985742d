//! Secrets at rest, sealed under one master key.
//!
//! # Guarantees
//!
//! XChaCha20-Poly1305 protects the secrecy and the integrity of a sealed secret. It can be opened only with the
//! master key *and* for the purpose that it was sealed for. A wrong master key is reported differently from a damaged
//! secret. The key file is created whole or not at all, and is refused if other users can read it.
//!
//! `crate::crypto::reencrypt` replaces the key, using the files of [`rotate`] and the keys of [`ring`].
//!
//! # Non-goals
//!
//! Protecting secrets in the memory of a running process.
//!
//! # Format
//!
//! A sealed secret consists of:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version of this layout: 1 |
//! | 8 | key id: the first bytes of the SHA-256 of the master key |
//! | 24 | nonce, from the system's random source |
//! | the rest | ciphertext and its tag of 16 bytes; the header's version and the purpose are authenticated with it |
//!
//! The master key itself encrypts nothing. The encryption key, and the keys of [`MasterKey::derive`], are derived
//! from it with HMAC-SHA256 over distinct texts.

pub(crate) mod ring;
mod rotate;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

const KEY_BYTES: usize = 32;
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Number of bytes by which a sealed secret is longer than the secret.
pub const SEALED_OVERHEAD_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES;

/// The master key file contains 44 characters. A file larger than this is something else and is not read.
const KEY_FILE_BYTES_MAX: u64 = 1024;

/// Base64 as people paste it: padding may be missing.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Why a master key could not be loaded, or a secret could not be sealed or opened. No message contains a key or a
/// secret.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The given text is not a master key.
    #[error(
        "the master key is not 32 bytes in base64 or hexadecimal; `openssl rand -base64 32` makes one"
    )]
    BadKeyText,
    /// The master key file can be read but contains no key.
    #[error(
        "{} contains no master key (32 bytes in base64 or hexadecimal): the file is damaged; restore it from a backup. \
         Without it, the secrets sealed under it (webhook secrets and those of connections) cannot be opened by anybody. \
         If there is no backup, move the file away and start with `errand serve --discard-secrets`, which creates a new \
         key; each secret must then be set again",
        path.display()
    )]
    DamagedKeyFile { path: PathBuf },
    /// Other users can read or change the master key file.
    #[error("other users can access {} (mode {mode:03o}); run `chmod 600 {}`", path.display(), path.display())]
    KeyFileOpenToOthers {
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The master key file could not be read or created.
    #[error("cannot {act} the master key file {}", path.display())]
    KeyFile {
        /// The operation, such as `read` or `create`.
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The system returned no random bytes.
    #[error("the system returned no random bytes")]
    Randomness(#[source] getrandom::Error),
    /// The secret is longer than the cipher supports (256 GiB).
    #[error("the secret is too long to be sealed")]
    TooLong,
    /// The bytes are not a sealed secret, or have a version that this program does not know.
    #[error("these bytes are not a sealed secret, or were sealed by a newer version of errand")]
    NotSealed,
    /// The secret was sealed under a different key.
    #[error(
        "sealed under another master key: {sealed_under} (this server's is {ours}); start with the master key that \
         belongs to this data directory, or set the secret again"
    )]
    OtherKey {
        /// Id of the key that it was sealed under: 16 hexadecimal digits.
        sealed_under: String,
        /// Id of this server's key.
        ours: String,
    },
    /// The key is right, but the bytes were changed or belong to another purpose.
    #[error(
        "the sealed secret of `{purpose}` is damaged or was sealed for something else; set the secret again"
    )]
    Damaged {
        /// The purpose for which it was to be opened.
        purpose: String,
    },
}

/// A sealed secret. It may be stored anywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed(pub Vec<u8>);

/// The key under which all secrets at rest are sealed. It cannot be printed or copied, and its bytes are overwritten
/// when it is dropped.
pub struct MasterKey {
    /// On the heap, so that moving the key leaves no copy behind.
    bytes: Box<[u8; KEY_BYTES]>,
    /// The file that it was read from.
    file: Option<PathBuf>,
    /// The key that a rotation is replacing it with.
    next: Option<Box<MasterKey>>,
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.bytes.fill(0);
        // Without a reader, the compiler may optimize the overwriting away.
        std::hint::black_box(&self.bytes);
    }
}

impl MasterKey {
    /// Creates a key from 32 random bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self {
            bytes: Box::new(bytes),
            file: None,
            next: None,
        }
    }

    /// Parses a key: 32 bytes in base64 (standard or URL-safe, with or without padding), or 64 hexadecimal digits.
    /// Surrounding white space is ignored.
    ///
    /// # Errors
    /// [`SealError::BadKeyText`], which does not repeat the text.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let text = text.trim();
        let bytes = if text.len() == KEY_BYTES * 2 {
            hex::decode(text).ok()
        } else {
            STANDARD_LENIENT
                .decode(text)
                .or_else(|_| URL_SAFE_LENIENT.decode(text))
                .ok()
        };
        let bytes: [u8; KEY_BYTES] = bytes
            .and_then(|b| b.try_into().ok())
            .ok_or(SealError::BadKeyText)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Reads the key from `path`. If there is no such file, creates it with a new random key.
    ///
    /// The file appears whole, with mode 0600, and is on disk (together with its directory entry) before this
    /// returns. If several processes create it at the same time, one wins and the others read its key. The directory
    /// must exist. The key of an interrupted rotation is loaded too.
    ///
    /// # Errors
    /// [`SealError::KeyFileOpenToOthers`], [`SealError::DamagedKeyFile`] (such a file is never overwritten, because
    /// it may be the only thing that opens the secrets), [`SealError::KeyFile`], [`SealError::Randomness`].
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        if let Some(key) = Self::load(path)? {
            return key.with_next(path);
        }
        if let Some(key) = Self::create(path)? {
            return key.with_next(path);
        }
        let vanished = || SealError::KeyFile {
            act: "read",
            path: path.into(),
            source: io::ErrorKind::NotFound.into(),
        };
        Self::load(path)?.ok_or_else(vanished)?.with_next(path)
    }

    /// Returns `None` if there is no such file.
    fn load(path: &Path) -> Result<Option<Self>, SealError> {
        let failed = |source| SealError::KeyFile {
            act: "read",
            path: path.into(),
            source,
        };
        // Checked before opening, because opening a FIFO would block.
        match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
            Ok(meta) if !meta.is_file() => {
                return Err(SealError::DamagedKeyFile { path: path.into() });
            }
            Ok(_) => {}
        }
        let file = File::open(path).map_err(failed)?;
        // Checked on the open file, because the path could lead to a different file by now.
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SealError::KeyFileOpenToOthers {
                path: path.into(),
                mode,
            });
        }
        let mut bytes = Vec::new();
        file.take(KEY_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let key = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| Self::from_text(text).ok());
        bytes.fill(0);
        std::hint::black_box(&bytes);
        key.map(Some)
            .ok_or_else(|| SealError::DamagedKeyFile { path: path.into() })
    }

    /// Returns `None` if the file already exists.
    ///
    /// The key is written to a file next to it, which is then linked to the final name, because linking fails if the
    /// name exists. A crash therefore leaves either no key or a whole one, and no key is ever replaced.
    fn create(path: &Path) -> Result<Option<Self>, SealError> {
        let failed = |source| SealError::KeyFile {
            act: "create",
            path: path.into(),
            source,
        };
        let key = Self::from_bytes(random()?);
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.new", hex::encode(random::<8>()?)));
        let beside = PathBuf::from(beside);

        let linked = write_private(&beside, &key).and_then(|()| std::fs::hard_link(&beside, path));
        let removed = std::fs::remove_file(&beside);
        match linked {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
        removed.map_err(failed)?;
        let directory = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        Ok(Some(key))
    }

    /// Identifies the key without revealing it, for messages and `errand doctor`: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        hex::encode(self.id_bytes())
    }

    fn id_bytes(&self) -> [u8; KEY_ID_BYTES] {
        let digest: [u8; 32] = Sha256::digest(self.bytes.as_slice()).into();
        let mut id = [0; KEY_ID_BYTES];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        id
    }

    /// Seals a secret for one purpose. The purpose says what the secret is and whom it belongs to, such as
    /// `webhook_secret:<team id>`, so that it cannot be opened after it was moved to another row or team. The result
    /// is [`SEALED_OVERHEAD_BYTES`] longer than `plain`, and different each time.
    ///
    /// # Errors
    /// [`SealError::Randomness`]; [`SealError::TooLong`], which no real secret reaches.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Sealed, SealError> {
        let nonce: [u8; NONCE_BYTES] = random()?;
        let payload = Payload {
            msg: plain,
            aad: &associated(purpose),
        };
        let text = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::TooLong)?;
        let mut sealed = Vec::with_capacity(SEALED_OVERHEAD_BYTES + plain.len());
        sealed.push(VERSION);
        sealed.extend(self.id_bytes());
        sealed.extend(nonce);
        sealed.extend(text);
        Ok(Sealed(sealed))
    }

    /// Opens a secret that [`MasterKey::seal`] sealed for the same purpose.
    ///
    /// # Errors
    /// [`SealError::NotSealed`], [`SealError::OtherKey`], [`SealError::Damaged`].
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::NotSealed)?;
        let (key_id, rest) = rest
            .split_first_chunk::<KEY_ID_BYTES>()
            .ok_or(SealError::NotSealed)?;
        let (nonce, text) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(SealError::NotSealed)?;
        if *version != VERSION || text.len() < TAG_BYTES {
            return Err(SealError::NotSealed);
        }
        if *key_id != self.id_bytes() {
            return Err(SealError::OtherKey {
                sealed_under: hex::encode(key_id),
                ours: self.id(),
            });
        }
        let payload = Payload {
            msg: text,
            aad: &associated(purpose),
        };
        self.cipher()
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| SealError::Damaged {
                purpose: purpose.into(),
            })
    }

    /// Derives a key for one purpose, for example for signing upload URLs. The same purpose always gives the same
    /// key; neither the master key nor the key of another purpose can be computed from it.
    pub fn derive(&self, purpose: &str) -> [u8; KEY_BYTES] {
        self.mac(&["errand/derive/1\0", purpose])
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.mac(&["errand/seal/1"]).into())
    }

    fn mac(&self, parts: &[&str]) -> [u8; KEY_BYTES] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&hmac_key(&self.bytes));
        parts.iter().for_each(|part| mac.update(part.as_bytes()));
        mac.finalize().into_bytes().into()
    }
}

/// Id of the key that a secret is sealed under. `None` if it is not a sealed secret.
pub(crate) fn key_id_of(sealed: &[u8]) -> Option<String> {
    let (version, rest) = sealed.split_first()?;
    let (id, _) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
    (*version == VERSION).then(|| hex::encode(id))
}

/// The key block of HMAC, padded with zeros as HMAC itself does. This form cannot fail.
fn hmac_key(key: &[u8; KEY_BYTES]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    block
}

/// The data that is authenticated together with the secret: the version of the format, and the purpose. The key id
/// and the nonce need not be included, because changing them means decrypting with a different key or nonce, which
/// fails.
fn associated(purpose: &str) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(purpose.as_bytes());
    bytes
}

/// Creates a file that only its owner can access. Fails if it exists. On disk when this returns.
fn write_private(path: &Path, key: &MasterKey) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut text = STANDARD.encode(key.bytes.as_slice());
    text.push('\n');
    let written = file.write_all(text.as_bytes());
    let mut text = text.into_bytes();
    text.fill(0);
    std::hint::black_box(&text);
    written?;
    file.sync_all()
}

/// Generates a secret for signing a team's webhooks: `whsec_` and 32 random bytes in base64.
pub(crate) fn webhook_secret() -> Result<String, SealError> {
    Ok(format!("whsec_{}", STANDARD.encode(random::<KEY_BYTES>()?)))
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(SealError::Randomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
