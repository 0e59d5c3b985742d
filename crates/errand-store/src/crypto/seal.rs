//! Secrets at rest: sealed under one master key.
//!
//! Promised: what is sealed is kept secret and unchanged by XChaCha20-Poly1305, can be opened only under the master key
//! *and* for the purpose it was sealed for, and a wrong master key is told apart from a damaged secret. The key's own
//! file is made whole or not at all, and is refused when others can read it.
//!
//! The key is replaced by `crate::crypto::reencrypt`, with [`rotate`]'s files and [`ring`]'s keys.
//!
//! Left out: protection of what a running process holds in memory.
//!
//! A sealed secret, from its first byte:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version of this layout: 1 |
//! | 8 | key id: the first bytes of the SHA-256 of the master key |
//! | 24 | nonce, from the system's random source |
//! | the rest | ciphertext and its tag of 16 bytes; the header's version and the purpose are authenticated with it |
//!
//! The master key itself encrypts nothing: the encryption key and those of [`MasterKey::derive`] are made from it by
//! HMAC-SHA256 over texts that cannot be equal.

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

/// By how much a sealed secret is longer than the plain one.
pub const SEALED_OVERHEAD_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES;

/// The master key's file holds 44 characters; more than this is not such a file and is not read.
const KEY_FILE_BYTES_MAX: u64 = 1024;

/// Base64 as people paste it: padding may be missing.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Why a master key could not be had, or a secret not be sealed or opened. No message holds a key or a secret.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The text given as the master key is none.
    #[error(
        "the master key is not 32 bytes in base64 or hexadecimal; `openssl rand -base64 32` makes one"
    )]
    BadKeyText,
    /// The master key's file could be opened but holds no key.
    #[error(
        "{} holds no master key (32 bytes in base64 or hexadecimal): it is damaged; restore it from a backup. Without \
         it the secrets sealed under it (webhook secrets and those of connections) cannot be opened by anybody. If \
         there is no backup, move the file away and start with `errand serve --discard-secrets`, which makes a new key; \
         each secret must then be set anew",
        path.display()
    )]
    DamagedKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// Someone else than the owner may read or change the master key's file.
    #[error("others than its owner can open {} (mode {mode:03o}); run `chmod 600 {}`", path.display(), path.display())]
    KeyFileOpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The master key's file could not be read or made.
    #[error("cannot {act} the master key's file {}", path.display())]
    KeyFile {
        /// What was tried: `read`, `make`.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Randomness(#[source] getrandom::Error),
    /// The plain text is longer than the cipher takes (256 GiB).
    #[error("the secret is too long to be sealed")]
    TooLong,
    /// The bytes are not a sealed secret of a version that this program knows.
    #[error("these bytes are not a sealed secret, or were sealed by a newer version of errand")]
    NotSealed,
    /// Sealed under a key that is not this one.
    #[error(
        "sealed under another master key: {sealed_under} (this server's is {ours}); start with the master key that this \
         data directory was made with, or set the secret anew"
    )]
    OtherKey {
        /// Id of the key that it was sealed under, 16 hexadecimal digits.
        sealed_under: String,
        /// Id of this server's key.
        ours: String,
    },
    /// The right key, but the bytes were changed or belong to another purpose.
    #[error(
        "the sealed secret of `{purpose}` is damaged or was sealed for something else; set the secret anew"
    )]
    Damaged {
        /// What it was opened for.
        purpose: String,
    },
}

/// A sealed secret: bytes that may be stored anywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed(pub Vec<u8>);

/// The key that all secrets at rest are sealed under. It can be neither printed nor copied; its bytes are overwritten
/// when it goes.
pub struct MasterKey {
    /// On the heap, so that moving the key leaves no copy behind.
    bytes: Box<[u8; KEY_BYTES]>,
    /// Where it was read from.
    file: Option<PathBuf>,
    /// The key that is about to replace it.
    next: Option<Box<MasterKey>>,
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.bytes.fill(0);
        // Without a reader the compiler may leave the overwriting out.
        std::hint::black_box(&self.bytes);
    }
}

impl MasterKey {
    /// A key of 32 random bytes that the caller drew.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self {
            bytes: Box::new(bytes),
            file: None,
            next: None,
        }
    }

    /// A key from text: 32 bytes in base64 (standard or URL-safe, with or without padding) or in 64 hexadecimal
    /// digits. White space around it is dropped.
    ///
    /// # Errors
    /// [`SealError::BadKeyText`], which does not repeat the text.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let text = text.trim();
        let bytes = if text.len() == KEY_BYTES * 2 {
            from_hex(text)
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

    /// Reads the key from `path`, or makes the file with a new random key if there is none.
    ///
    /// The file appears whole, mode 0600, and on disk (it and its directory are synced) before this returns; of several
    /// processes that make it at the same time one wins and the others read its key. The directory must exist. A key
    /// that a rotation was bringing in comes along.
    ///
    /// # Errors
    /// [`SealError::KeyFileOpenToOthers`], [`SealError::DamagedKeyFile`] (never overwritten: it may be all that opens
    /// the secrets), [`SealError::KeyFile`], [`SealError::Randomness`].
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

    /// `None` if there is no such file.
    fn load(path: &Path) -> Result<Option<Self>, SealError> {
        let failed = |source| SealError::KeyFile {
            act: "read",
            path: path.into(),
            source,
        };
        // Asked first, since to open a FIFO would block.
        match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
            Ok(meta) if !meta.is_file() => {
                return Err(SealError::DamagedKeyFile { path: path.into() });
            }
            Ok(_) => {}
        }
        let file = File::open(path).map_err(failed)?;
        // Of the opened file, not of the path, which could be another one by now.
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

    /// `None` if the file was there already.
    ///
    /// The key is written beside the final place and then linked there, because a link fails where a file is: a crash
    /// leaves either no key or a whole one, and no key is ever replaced.
    fn create(path: &Path) -> Result<Option<Self>, SealError> {
        let failed = |source| SealError::KeyFile {
            act: "make",
            path: path.into(),
            source,
        };
        let key = Self::from_bytes(random()?);
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.new", to_hex(&random::<8>()?)));
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

    /// Which key this is: 16 hexadecimal digits that say nothing about the key, for messages and `errand doctor`.
    pub fn id(&self) -> String {
        to_hex(&self.id_bytes())
    }

    fn id_bytes(&self) -> [u8; KEY_ID_BYTES] {
        let digest: [u8; 32] = Sha256::digest(self.bytes.as_slice()).into();
        let mut id = [0; KEY_ID_BYTES];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        id
    }

    /// Seals a secret for one purpose, which names what and whose it is, such as `webhook_secret:<team id>`: moved to
    /// another row or team it does not open. The result is [`SEALED_OVERHEAD_BYTES`] longer than `plain`, and another
    /// one each time.
    ///
    /// # Errors
    /// [`SealError::Randomness`]; [`SealError::TooLong`], which no real secret meets.
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

    /// Opens what [`MasterKey::seal`] made for the same purpose.
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
                sealed_under: to_hex(key_id),
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

    /// A key of 32 bytes for one purpose, the same each time, from which neither the master key nor the key of another
    /// purpose can be had: for signatures of upload URLs and the like.
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

/// The id of the key that something is sealed under. None: it is not sealed.
pub(crate) fn key_id_of(sealed: &[u8]) -> Option<String> {
    let (version, rest) = sealed.split_first()?;
    let (id, _) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
    (*version == VERSION).then(|| to_hex(id))
}

/// HMAC's key block, filled up with zeros as HMAC itself would: the one form that cannot fail.
fn hmac_key(key: &[u8; KEY_BYTES]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    block
}

/// What is authenticated beside the secret: the layout's version and the purpose. The key id and the nonce need not be
/// in it: to change them is to decrypt with another key or nonce, which fails.
fn associated(purpose: &str) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(purpose.as_bytes());
    bytes
}

/// A file that nobody else can open, in a place where no file is; on disk when this returns.
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

/// A new secret that signs a team's webhooks: `whsec_` and 32 random bytes in base64.
pub(crate) fn webhook_secret() -> Result<String, SealError> {
    Ok(format!("whsec_{}", STANDARD.encode(random::<KEY_BYTES>()?)))
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(SealError::Randomness)?;
    Ok(bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.as_chunks::<2>();
    pairs
        .1
        .is_empty()
        .then(|| pairs.0.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests;
