// TLS over memory: ciphertext goes in and out as bytes, so that the connection's reads and writes stay where they are.
// Server side, TLS 1.2 and 1.3 (OpenSSL).
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

class TlsContext {
 public:
  // PEM files: the certificate with its chain, and its private key without a passphrase. Errors: what is wrong in
  // which.
  static Result<std::shared_ptr<TlsContext>> load(const std::filesystem::path& certificate,
                                                  const std::filesystem::path& key);
  ~TlsContext();

 private:
  friend class TlsSession;
  TlsContext() = default;
  void* context_ = nullptr;  // SSL_CTX
};

// One connection's. Used by one thread at a time.
class TlsSession {
 public:
  explicit TlsSession(const TlsContext& context);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  void put(std::string_view ciphertext);  // from the peer
  std::string take();                     // what must go to the peer now: after each read and write
  // Plaintext bytes into `out`; 0: more ciphertext is needed; -1: the peer ended, or its bytes are no TLS.
  std::ptrdiff_t read(char* out, size_t size);
  bool write(std::string_view plaintext);  // false: before the handshake is done, or after an error

 private:
  void* ssl_ = nullptr;  // SSL, which owns both BIOs
};

}  // namespace pinion
