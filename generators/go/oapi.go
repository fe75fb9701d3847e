package main

import (
	"context"
	"net/http"

	"example.test/generators/api/oapi"
)

type oapiClient struct{ *oapi.ClientWithResponses }

func newOapi(url string, sender *http.Client) api {
	return oapiClient{must(oapi.NewClientWithResponses(url, oapi.WithHTTPClient(sender)))}
}

// oapiAnswer takes what a generated client has decoded, of which all but one are nil.
func oapiAnswer(response *http.Response, decoded ...any) answer {
	taken := answer{status: response.StatusCode}
	for _, part := range decoded {
		switch part := part.(type) {
		case *oapi.Problem:
			if part != nil {
				taken.code = part.Code
				if part.ServerTime != nil {
					taken.serverTime = *part.ServerTime
				}
			}
		case *oapi.Receipt:
			if part != nil {
				taken.versions, taken.keyVersion, taken.sha256 = []int64{part.Version}, part.KeyVersion, part.Sha256
			}
		case *oapi.Backup:
			if part != nil {
				taken.versions, taken.sha256, taken.data = []int64{part.Version}, part.Sha256, part.Data
			}
		}
	}
	return taken
}

func optional(base string) *string {
	if base == "" {
		return nil
	}
	return &base
}

func (c oapiClient) getHealth() answer {
	return answer{word: must(c.GetHealthWithResponse(context.Background())).JSON200.Status}
}

func (c oapiClient) getOpenapiYaml() answer {
	return answer{word: must(c.GetOpenapiYamlWithResponse(context.Background())).YAML200.Openapi}
}

func (c oapiClient) registerUser() answer {
	got := must(c.RegisterUserWithResponse(context.Background()))
	return oapiAnswer(got.HTTPResponse, got.ApplicationproblemJSON401)
}

func (c oapiClient) storeBackup(data []byte, base string) answer {
	got := must(c.StoreBackupWithResponse(context.Background(), oapi.BackupUpload{Data: data, BaseSha256: optional(base)}))
	return oapiAnswer(got.HTTPResponse, got.JSON201, got.ApplicationproblemJSON409)
}

func (c oapiClient) fetchBackup() answer {
	got := must(c.FetchBackupWithResponse(context.Background()))
	taken := oapiAnswer(got.HTTPResponse, got.JSON200, got.ApplicationproblemJSON401, got.ApplicationproblemJSON404)
	if got.Headers200 != nil {
		taken.etag = *got.Headers200.ETag
	}
	return taken
}

func (c oapiClient) listBackupVersions() (listed answer) {
	for _, receipt := range must(c.ListBackupVersionsWithResponse(context.Background())).JSON200.Versions {
		listed.versions = append(listed.versions, receipt.Version)
	}
	return listed
}

func (c oapiClient) fetchBackupVersion(version int64) answer {
	got := must(c.FetchBackupVersionWithResponse(context.Background(), version))
	return oapiAnswer(got.HTTPResponse, got.JSON200)
}

func (c oapiClient) changeStorageKey(key string, data []byte, base string) answer {
	change := oapi.StorageKeyChange{StorageKey: key, Data: data, BaseSha256: optional(base)}
	got := must(c.ChangeStorageKeyWithResponse(context.Background(), change))
	return oapiAnswer(got.HTTPResponse, got.JSON200)
}

func (c oapiClient) deleteUser() answer {
	got := must(c.DeleteUserWithResponse(context.Background()))
	return oapiAnswer(got.HTTPResponse, got.ApplicationproblemJSON401)
}
