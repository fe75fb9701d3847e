import DailyRepsBackup
import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Stores the log from a file. On iOS, the configuration is `.background(withIdentifier: "backup")`: then the system
/// sends it while the app is suspended, and the app keeps the `BackgroundUpload`.
func storeInBackground(_ device: Device, file: URL) async throws {
    let (outcomes, ended) = AsyncStream.makeStream(of: Result<Void, any Error>.self)
    let upload = BackgroundUpload(of: device, file: file, configuration: .default, ended: { ended.yield($0) })
    guard try await upload.start() else { return }  // there is nothing to store
    for await outcome in outcomes { return try outcome.get() }
}
