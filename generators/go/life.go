// Lives a whole life with a client that ogen or oapi-codegen generates from openapi.yaml.
//
// The test generates the packages api/ogen and api/oapi beside this file. Then it runs this program, once for each client.
// The program prints one line a step: the operation, and what the client decoded. test_generators.py says which lines it
// expects.
package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"slices"
)

// answer is what a client decoded of an answer. A member that the answer does not have is zero.
type answer struct {
	status     int
	word       string // the status of the server, or the version of OpenAPI
	code       string // of a problem, as serverTime
	serverTime int64
	versions   []int64 // newest first
	keyVersion int64
	sha256     string
	etag       string
	data       []byte
}

// api is what a generated client can do. Each function panics if there is no answer.
type api interface {
	getHealth() answer
	getOpenapiYaml() answer
	registerUser() answer
	storeBackup(data []byte, base string) answer
	fetchBackup() answer
	listBackupVersions() answer
	fetchBackupVersion(version int64) answer
	changeStorageKey(key string, data []byte, base string) answer
	deleteUser() answer
}

func main() {
	proofs := &Proofs{
		UserID: os.Getenv("TARGET_USER_ID"), Keyid: os.Getenv("TARGET_KEYID"), Secret: os.Getenv("TARGET_SECRET"),
	}
	generated := map[string]func(string, *http.Client) api{"ogen": newOgen, "oapi-codegen": newOapi}[os.Args[1]]
	client := generated(os.Getenv("TARGET_URL"), &http.Client{Transport: proofs})
	first := make([]byte, 256)
	for index := range first {
		first[index] = byte(index)
	}
	second := slices.Clone(first)
	slices.Reverse(second)

	fmt.Println("getHealth", client.getHealth().word)
	fmt.Println("document", client.getOpenapiYaml().word)
	fmt.Println("fetchBackup", client.fetchBackup().code)

	proofs.StorageKey = os.Getenv("TARGET_STORAGE_KEY")
	expired := client.registerUser()
	fmt.Println("registerUser", expired.code)
	proofs.Difference = expired.serverTime - proofs.Now()
	fmt.Println("registerUser", client.registerUser().status)

	fmt.Println("fetchBackup", client.fetchBackup().code)
	fmt.Println("storeBackup", client.storeBackup(first, "").versions[0])
	fetched := client.fetchBackup()
	fmt.Println("fetchBackup", content(fetched))
	proofs.IfNoneMatch = fetched.etag
	fmt.Println("fetchBackup", client.fetchBackup().status)
	proofs.IfNoneMatch = ""

	fmt.Println("storeBackup", client.storeBackup(second, "").code)
	stored := client.storeBackup(second, fetched.sha256)
	fmt.Println("storeBackup", stored.versions[0])
	listed := client.listBackupVersions().versions
	fmt.Println("listBackupVersions", listed[0], listed[1])
	fmt.Println("fetchBackupVersion", content(client.fetchBackupVersion(1)))

	newKey := os.Getenv("TARGET_NEW_KEY")
	changed := client.changeStorageKey(newKey, first, stored.sha256)
	fmt.Println("changeStorageKey", changed.versions[0], changed.keyVersion)
	fmt.Println("fetchBackup", client.fetchBackup().code)
	proofs.StorageKey = newKey
	fmt.Println("fetchBackup", content(client.fetchBackup()))

	fmt.Println("deleteUser", client.deleteUser().status)
	fmt.Println("fetchBackup", client.fetchBackup().code)
}

// content returns the number of a version, and the SHA-256 of its bytes.
func content(backup answer) string {
	return fmt.Sprintf("%d %x", backup.versions[0], sha256.Sum256(backup.data))
}

func must[Value any](value Value, err error) Value {
	if err != nil {
		panic(err)
	}
	return value
}
