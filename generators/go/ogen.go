package main

import (
	"context"
	"fmt"
	"net/http"

	"example.test/generators/api/ogen"
	"github.com/go-faster/yaml"
)

type ogenClient struct{ *ogen.Client }

func newOgen(url string, sender *http.Client) api {
	return ogenClient{must(ogen.NewClient(url, later{}, ogen.WithClient(sender)))}
}

// later leaves all proofs to the transport of the client, which sets them when the body is final.
type later struct{}

func (later) AdminKey(context.Context, ogen.OperationName) (ogen.AdminKey, error) {
	return ogen.AdminKey{}, nil
}

func (later) AppSignature(context.Context, ogen.OperationName) (ogen.AppSignature, error) {
	return ogen.AppSignature{}, nil
}

func (later) UserCredentials(context.Context, ogen.OperationName) (ogen.UserCredentials, error) {
	return ogen.UserCredentials{}, nil
}

// ogenAnswer takes what a generated client has decoded, which has a type for each answer.
func ogenAnswer(decoded any, err error) answer {
	switch got := must(decoded, err).(type) {
	case *ogen.HealthHeaders:
		return answer{word: got.Response.Status}
	case *ogen.RegisterUserCreated:
		return answer{status: http.StatusCreated}
	case *ogen.StoreBackupCreatedHeaders:
		return ogenReceipt(got.Response)
	case *ogen.ReceiptHeaders:
		return ogenReceipt(got.Response)
	case *ogen.BackupHeaders:
		backup := got.Response
		return answer{
			versions: []int64{int64(backup.Version)}, sha256: string(backup.SHA256), etag: got.ETag.Value, data: backup.Data,
		}
	case *ogen.NotModified:
		return answer{status: http.StatusNotModified}
	case *ogen.VersionListHeaders:
		var listed answer
		for _, receipt := range got.Response.Versions {
			listed.versions = append(listed.versions, int64(receipt.Version))
		}
		return listed
	case *ogen.DeleteUserNoContent:
		return answer{status: http.StatusNoContent}
	case *ogen.UnauthorizedHeaders:
		return answer{code: string(got.Response.Code), serverTime: got.Response.ServerTime.Value}
	case *ogen.NoBackupHeaders:
		return answer{code: string(got.Response.Code)}
	case *ogen.VersionConflictHeaders:
		return answer{code: string(got.Response.Code)}
	}
	panic(fmt.Sprintf("not expected: %T", decoded))
}

func ogenReceipt(receipt ogen.Receipt) answer {
	return answer{
		versions: []int64{int64(receipt.Version)}, keyVersion: int64(receipt.KeyVersion), sha256: string(receipt.SHA256),
	}
}

func ogenBase(base string) ogen.OptSHA256 {
	return ogen.OptSHA256{Value: ogen.SHA256(base), Set: base != ""}
}

func (c ogenClient) getHealth() answer {
	return ogenAnswer(c.GetHealth(context.Background()))
}

func (c ogenClient) getOpenapiYaml() answer {
	raw := must(c.GetOpenapiYaml(context.Background())).(*ogen.GetOpenapiYamlOKRawApplicationYaml).Response
	defer raw.Body.Close()
	var document struct{ Openapi string }
	if err := yaml.NewDecoder(raw.Body).Decode(&document); err != nil {
		panic(err)
	}
	return answer{word: document.Openapi}
}

func (c ogenClient) registerUser() answer {
	return ogenAnswer(c.RegisterUser(context.Background()))
}

func (c ogenClient) storeBackup(data []byte, base string) answer {
	return ogenAnswer(c.StoreBackup(context.Background(), &ogen.BackupUpload{Data: data, BaseSha256: ogenBase(base)}))
}

func (c ogenClient) fetchBackup() answer {
	return ogenAnswer(c.FetchBackup(context.Background()))
}

func (c ogenClient) listBackupVersions() answer {
	return ogenAnswer(c.ListBackupVersions(context.Background()))
}

func (c ogenClient) fetchBackupVersion(version int64) answer {
	return ogenAnswer(c.FetchBackupVersion(context.Background(), ogen.FetchBackupVersionParams{Version: ogen.Version(version)}))
}

func (c ogenClient) changeStorageKey(key string, data []byte, base string) answer {
	change := &ogen.StorageKeyChange{StorageKey: key, Data: data, BaseSha256: ogenBase(base)}
	return ogenAnswer(c.ChangeStorageKey(context.Background(), change))
}

func (c ogenClient) deleteUser() answer {
	return ogenAnswer(c.DeleteUser(context.Background()))
}
