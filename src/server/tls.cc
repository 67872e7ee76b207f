#include "server/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <array>
#include <climits>

#include "base/check.h"

namespace pinion {
namespace {

std::string openssl_error() {
  std::array<char, 256> text{};
  const unsigned long code = ::ERR_get_error();
  ::ERR_clear_error();
  if (code == 0) return "unknown error";
  ::ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

SSL* ssl(void* p) {
  return static_cast<SSL*>(p);
}

// With ALPN a client may offer HTTP/2 first: this server speaks HTTP/1.1.
int choose_http11(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in, unsigned in_size,
                  void*) {
  static constexpr std::array<unsigned char, 9> ours = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  unsigned char* chosen = nullptr;
  const int found = ::SSL_select_next_proto(&chosen, out_size, ours.data(), ours.size(), in, in_size);
  *out = chosen;
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::load(const std::filesystem::path& certificate,
                                                     const std::filesystem::path& key) {
  std::shared_ptr<TlsContext> out(new TlsContext);
  SSL_CTX* context = ::SSL_CTX_new(::TLS_server_method());
  check(context != nullptr, "SSL_CTX_new failed");
  out->context_ = context;
  ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  ::SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_alpn_select_cb(context, choose_http11, nullptr);
  if (::SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
    return fail(Errc::invalid_argument, "no usable certificate: " + openssl_error(), certificate.string(),
                "give a PEM file with the certificate and its chain");
  }
  if (::SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return fail(Errc::invalid_argument, "no usable private key: " + openssl_error(), key.string(),
                "give the certificate's key as a PEM file without a passphrase");
  }
  if (::SSL_CTX_check_private_key(context) != 1) {
    return fail(Errc::invalid_argument, "the key is not the certificate's", key.string(),
                "give the two that belong "
                "together");
  }
  return out;
}

TlsContext::~TlsContext() {
  ::SSL_CTX_free(static_cast<SSL_CTX*>(context_));
}

TlsSession::TlsSession(const TlsContext& context) : ssl_(::SSL_new(static_cast<SSL_CTX*>(context.context_))) {
  check(ssl_ != nullptr, "SSL_new failed");
  ::SSL_set_bio(ssl(ssl_), ::BIO_new(::BIO_s_mem()), ::BIO_new(::BIO_s_mem()));
  ::SSL_set_accept_state(ssl(ssl_));
}

TlsSession::~TlsSession() {
  ::SSL_free(ssl(ssl_));
}

void TlsSession::put(std::string_view ciphertext) {
  while (!ciphertext.empty()) {
    const int size = static_cast<int>(std::min<size_t>(ciphertext.size(), INT_MAX));
    const int taken = ::BIO_write(::SSL_get_rbio(ssl(ssl_)), ciphertext.data(), size);
    check(taken > 0, "a memory BIO takes everything");
    ciphertext.remove_prefix(static_cast<size_t>(taken));
  }
}

std::string TlsSession::take() {
  std::string out(static_cast<size_t>(::BIO_ctrl_pending(::SSL_get_wbio(ssl(ssl_)))), '\0');
  if (!out.empty()) {
    const int size = ::BIO_read(::SSL_get_wbio(ssl(ssl_)), out.data(), static_cast<int>(out.size()));
    out.resize(static_cast<size_t>(std::max(0, size)));
  }
  return out;
}

std::ptrdiff_t TlsSession::read(char* out, size_t size) {
  ::ERR_clear_error();
  const int got = ::SSL_read(ssl(ssl_), out, static_cast<int>(std::min<size_t>(size, INT_MAX)));
  if (got > 0) return got;
  const int why = ::SSL_get_error(ssl(ssl_), got);
  return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

bool TlsSession::write(std::string_view plaintext) {
  ::ERR_clear_error();
  while (!plaintext.empty()) {
    const int sent =
        ::SSL_write(ssl(ssl_), plaintext.data(), static_cast<int>(std::min<size_t>(plaintext.size(), INT_MAX)));
    if (sent <= 0) return false;
    plaintext.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

}  // namespace pinion
