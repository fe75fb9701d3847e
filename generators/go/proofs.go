package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Proofs sends each request with the four headers of "Two proofs", and with If-None-Match. The generated clients call it
// last, when the body's bytes are final.
type Proofs struct {
	UserID, Keyid, Secret string
	StorageKey            string // without it, requests go out without proofs
	IfNoneMatch           string
	Difference            int64 // what the device's clock needs, in seconds
}

// Now is the time in Unix seconds on this device, whose clock is an hour behind.
func (p *Proofs) Now() int64 { return time.Now().Unix() - 3600 }

// RoundTrip adds the headers to a request and sends it.
func (p *Proofs) RoundTrip(request *http.Request) (*http.Response, error) {
	if p.StorageKey == "" {
		return http.DefaultTransport.RoundTrip(request)
	}
	var body []byte
	if request.Body != nil {
		read, err := io.ReadAll(request.Body)
		if err != nil {
			return nil, err
		}
		body = read
	}
	signed := request.Clone(request.Context())
	signed.Body, signed.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(body) == 0 {
		signed.Body = http.NoBody
	}
	digest := sha256.Sum256(body)
	authorization := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.UserID+":"+p.StorageKey))
	contentDigest := "sha-256=:" + base64.StdEncoding.EncodeToString(digest[:]) + ":"
	params := fmt.Sprintf(
		`("@method" "@path" "authorization" "content-digest");created=%d;keyid="%s";alg="hmac-sha256"`,
		p.Now()+p.Difference, p.Keyid,
	)
	mac := hmac.New(sha256.New, []byte(p.Secret))
	fmt.Fprintf(
		mac,
		"\"@method\": %s\n\"@path\": %s\n\"authorization\": %s\n\"content-digest\": %s\n\"@signature-params\": %s",
		request.Method, request.URL.EscapedPath(), authorization, contentDigest, params,
	)
	signed.Header.Set("Authorization", authorization)
	signed.Header.Set("Content-Digest", contentDigest)
	signed.Header.Set("Signature-Input", "app="+params)
	signed.Header.Set("Signature", "app=:"+base64.StdEncoding.EncodeToString(mac.Sum(nil))+":")
	if p.IfNoneMatch != "" {
		signed.Header.Set("If-None-Match", p.IfNoneMatch)
	}
	return http.DefaultTransport.RoundTrip(signed)
}
