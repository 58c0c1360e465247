/** A host of the tests alone: hooks.acme.io, with a certificate that only a test trusts. Made by
 * openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=hooks.acme.io -addext subjectAltName=DNS:hooks.acme.io */
export const host = 'hooks.acme.io'

export const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghrcwa4X2j6/kxANa
ogVLpDtEp1d15ucPzw54heGN/RqhRANCAARKAZKEiyWZh240V2QHMmmGlHwdi6zv
4HIDrM8f6DmmANUAAtECU24OCEEQyUaHjnCBtOO7maP+QxSCSjfV9hre
-----END PRIVATE KEY-----
`

export const cert = `-----BEGIN CERTIFICATE-----
MIIBojCCAUegAwIBAgIUPOuv5HH569HDv9Pf4g4r9OESOpAwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNaG9va3MuYWNtZS5pbzAgFw0yNjExMjkwNjU2MzNaGA8yMTI2
MTEwNTA2NTYzM1owGDEWMBQGA1UEAwwNaG9va3MuYWNtZS5pbzBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABEoBkoSLJZmHbjRXZAcyaYaUfB2LrO/gcgOszx/oOaYA
1QAC0QJTbg4IQRDJRoeOcIG047uZo/5DFIJKN9X2Gt6jbTBrMB0GA1UdDgQWBBSX
ZGKHLZEV8dCVP3Y9sbVu2cr8ozAfBgNVHSMEGDAWgBSXZGKHLZEV8dCVP3Y9sbVu
2cr8ozAPBgNVHRMBAf8EBTADAQH/MBgGA1UdEQQRMA+CDWhvb2tzLmFjbWUuaW8w
CgYIKoZIzj0EAwIDSQAwRgIhAMy7HVKUijCtMcTReW4/1YkcV5Dr7eamDXzsO+NX
Beh2AiEAtCLpVjNaFAD2i5ZbYWNUkhImM4j32crIAymmbyxFLXo=
-----END CERTIFICATE-----
`
