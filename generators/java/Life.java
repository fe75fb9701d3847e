import java.net.URI;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Flow;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.ApiResponse;
import org.openapitools.client.api.AccountApi;
import org.openapitools.client.api.BackupApi;
import org.openapitools.client.api.ServiceApi;
import org.openapitools.client.model.Backup;
import org.openapitools.client.model.BackupUpload;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.Receipt;
import org.openapitools.client.model.StorageKeyChange;

/**
 * Lives a whole life with the client that openapi-generator generates from openapi.yaml.
 *
 * <p>It prints one line a step: the operation, and what the client decoded. test_generators.py says which lines it
 * expects.
 */
class Life {
    static final Map<String, String> TARGET = System.getenv();
    static final Base64.Encoder BASE64 = Base64.getEncoder();
    static final ApiClient CLIENT = new ApiClient();
    static long difference = 0;
    static String storageKey; // without it, requests go out without proofs

    /** This device's clock is an hour behind. */
    static long now() {
        return Instant.now().getEpochSecond() - 3600;
    }

    static byte[] sha256(byte[] bytes) throws Exception {
        return MessageDigest.getInstance("SHA-256").digest(bytes);
    }

    /** Set the four headers of "Two proofs". The generated client calls it last, when the body's bytes are final. */
    static void sign(HttpRequest.Builder builder) {
        if (storageKey == null) return;
        try {
            HttpRequest request = builder.copy().build();
            byte[] body = request.bodyPublisher().map(Life::bytes).orElse(new byte[0]);
            String credentials = TARGET.get("TARGET_USER_ID") + ":" + storageKey;
            String authorization = "Basic " + BASE64.encodeToString(credentials.getBytes());
            String digest = "sha-256=:" + BASE64.encodeToString(sha256(body)) + ":";
            String parameters = "(\"@method\" \"@path\" \"authorization\" \"content-digest\");created="
                    + (now() + difference) + ";keyid=\"" + TARGET.get("TARGET_KEYID") + "\";alg=\"hmac-sha256\"";
            String base = "\"@method\": " + request.method()
                    + "\n\"@path\": " + request.uri().getRawPath()
                    + "\n\"authorization\": " + authorization
                    + "\n\"content-digest\": " + digest
                    + "\n\"@signature-params\": " + parameters;
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(TARGET.get("TARGET_SECRET").getBytes(), "HmacSHA256"));
            builder.setHeader("Authorization", authorization);
            builder.setHeader("Content-Digest", digest);
            builder.setHeader("Signature-Input", "app=" + parameters);
            builder.setHeader("Signature", "app=:" + BASE64.encodeToString(mac.doFinal(base.getBytes())) + ":");
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }

    /** Return the bytes that a publisher sends. */
    static byte[] bytes(HttpRequest.BodyPublisher publisher) {
        HttpResponse.BodySubscriber<byte[]> collector = HttpResponse.BodySubscribers.ofByteArray();
        publisher.subscribe(new Flow.Subscriber<>() {
            public void onSubscribe(Flow.Subscription subscription) {
                collector.onSubscribe(subscription);
            }

            public void onNext(ByteBuffer buffer) {
                collector.onNext(List.of(buffer));
            }

            public void onError(Throwable error) {
                collector.onError(error);
            }

            public void onComplete() {
                collector.onComplete();
            }
        });
        return collector.getBody().toCompletableFuture().join();
    }

    interface Call {
        void run() throws ApiException;
    }

    /** Return the exception that a call, which must fail, throws. */
    static ApiException refusal(Call call) {
        try {
            call.run();
        } catch (ApiException refusal) {
            return refusal;
        }
        throw new IllegalStateException("the call has succeeded");
    }

    static Problem problem(Call call) throws Exception {
        return CLIENT.getObjectMapper().readValue(refusal(call).getResponseBody(), Problem.class);
    }

    static String content(Backup backup) throws Exception {
        return backup.getVersion() + " " + HexFormat.of().formatHex(sha256(backup.getData()));
    }

    static void say(Object... words) {
        System.out.println(List.of(words).stream().map(String::valueOf).collect(Collectors.joining(" ")));
    }

    public static void main(String[] arguments) throws Exception {
        CLIENT.updateBaseUri(TARGET.get("TARGET_URL"));
        CLIENT.setRequestInterceptor(Life::sign);
        AccountApi account = new AccountApi(CLIENT);
        BackupApi backup = new BackupApi(CLIENT);
        ServiceApi service = new ServiceApi(CLIENT);
        byte[] first = new byte[256];
        byte[] second = new byte[256];
        for (int index = 0; index < 256; index++) {
            first[index] = second[255 - index] = (byte) index;
        }

        say("getHealth", service.getHealth().getStatus());
        say("document", service.getOpenapiJson().getOpenapi());
        say("fetchBackup", problem(backup::fetchBackup).getCode());

        storageKey = TARGET.get("TARGET_STORAGE_KEY");
        Problem expired = problem(account::registerUser);
        say("registerUser", expired.getCode());
        difference = expired.getServerTime() - now();
        say("registerUser", account.registerUserWithHttpInfo().getStatusCode());

        say("fetchBackup", problem(backup::fetchBackup).getCode());
        say("storeBackup", backup.storeBackup(new BackupUpload().data(first)).getVersion());
        ApiResponse<Backup> fetched = backup.fetchBackupWithHttpInfo();
        say("fetchBackup", content(fetched.getData()));
        String etag = fetched.getHeaders().get("etag").get(0);
        say("fetchBackup", refusal(() -> backup.fetchBackup(Map.of("If-None-Match", etag))).getCode());

        BackupUpload upload = new BackupUpload().data(second);
        say("storeBackup", problem(() -> backup.storeBackup(upload)).getCode());
        Receipt receipt = backup.storeBackup(upload.baseSha256(fetched.getData().getSha256()));
        say("storeBackup", receipt.getVersion());
        say("listBackupVersions", backup.listBackupVersions().getVersions().stream()
                .map(version -> version.getVersion().toString()).collect(Collectors.joining(" ")));
        say("fetchBackupVersion", content(backup.fetchBackupVersion(1L)));

        String newKey = TARGET.get("TARGET_NEW_KEY");
        StorageKeyChange change = new StorageKeyChange().storageKey(newKey).data(first).baseSha256(receipt.getSha256());
        Receipt changed = account.changeStorageKey(change);
        say("changeStorageKey", changed.getVersion(), changed.getKeyVersion());
        say("fetchBackup", problem(backup::fetchBackup).getCode());
        storageKey = newKey;
        say("fetchBackup", content(backup.fetchBackup()));

        say("deleteUser", account.deleteUserWithHttpInfo().getStatusCode());
        say("fetchBackup", problem(backup::fetchBackup).getCode());
    }
}
